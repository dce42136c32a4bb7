"""Training methods of f: plain, and those on top of which the paper puts introspection (Table 4).

``method_params`` has the parameters of each, ``method`` what a training asks of it; every other
module makes one `Method` from its parameters, and ``chosen`` maps the parameters to these modules.
"""
