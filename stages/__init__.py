"""The science, in the order the data flows; see the docstring of each package.

Images in (``data``), the network f (``sensing``), its gradients (``reflection``) and the heads that
read them (``introspection``); then the applications, packages that do not import each other:
``evaluation``, ``ood``, ``active_learning``, ``analysis`` and ``prediction``; last ``report`` and
``recipes``. ``metrics`` are pure functions that serve all of them.
"""
