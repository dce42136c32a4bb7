"""What the options of execution mean. This module imports nothing, so that help stays fast."""

EXECUTOR = (
    "Where to run. local: one worker in this process. ray: workers on a Ray cluster. auto: local "
    "unless the work needs several workers or a cluster is named."
)
GPUS = "Number of GPU workers; 0 for CPU workers. (default: all GPUs of the cluster or machine)"
WORKERS = (
    "Number of CPU workers. (default: this process alone; on Ray one for each core but one, "
    "including those of nodes that join)"
)
MEMORY = (
    "Memory of a worker, as in 2G; the batch size is reduced to fit. (default: an even share of "
    "the free memory)"
)
ADDRESS = (
    "Ray cluster to connect to: auto, host:6379 or ray://host:10001. (default: $RAY_ADDRESS, else "
    "this machine)"
)
DEVICE = "Device: cpu, cuda or cuda:1. (default: cuda if available)"
