"""Names in the results of active learning: the stages of their plans, and the weights of f."""

RUN_STAGE = "active-learning"
CURVES_STAGE = "active-learning-curves"
ASKING_STAGE = "ask-for-labels"

WEIGHTS = "weights.safetensors"
