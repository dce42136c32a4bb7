"""Corruptions: the 19 of CIFAR-10-C and ImageNet-C, six modelled on CURE-OR, and rotation.

``names`` lists them without loading a library, ``levels`` pairs each with its constants,
``severities`` applies it, ``noise``, ``blur``, ``weather``, ``digital``, ``cure`` and ``rotation``
contain one function for each.

Every function takes a block of images, ``uint8 [n, H, W, 3]`` RGB, and returns a new block of the
same shape. Those that draw random numbers take one generator per image, so that an image's bytes
depend on its row and never on the images beside it.

Source of the constants and of the order of operations: Hendrycks & Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, and the generators of
their data for 32, 64 and 224 pixels (hendrycks/robustness, ``make_cifar_c.py``,
``make_tinyimagenet_c.py`` and ``make_imagenet_c.py``). These drew from an unseeded generator and
used ImageMagick, so a set made here has the statistics of the released data, not their bytes.
"""
