"""Corruptions of 32x32 images: the 19 of CIFAR-10-C, six modelled on CURE-OR, and rotation.

``names`` lists them without loading a library, ``severities`` pairs each with its levels and
applies it, ``noise``, ``blur``, ``weather``, ``digital``, ``cure`` and ``rotation`` contain one
function for each.

Every function takes a block of images, ``uint8 [n, 32, 32, 3]`` RGB, and returns a new block of the
same shape. Those that draw random numbers take one generator per image, so that an image's bytes
depend on its row and never on the images beside it.

Source of the constants and of the order of operations: Hendrycks & Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, and the generator of
their 32-pixel data (hendrycks/robustness, ``make_cifar_c.py``). It drew from an unseeded generator
and used ImageMagick, so a set made here has the statistics of the released arrays, not their bytes.
"""
