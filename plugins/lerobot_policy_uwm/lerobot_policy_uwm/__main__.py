"""`python -m lerobot_policy_uwm CHECKPOINT OUT`: a folder that LeRobot opens by --policy.path, from one of uwm's checkpoints."""

import argparse

from lerobot_policy_uwm import UwmPolicy, make_uwm_pre_post_processors

parser = argparse.ArgumentParser(prog="python -m lerobot_policy_uwm", description=__doc__)
parser.add_argument("checkpoint", help="a checkpoint folder of uwm train")
parser.add_argument("out", help="the folder to write")
arguments = parser.parse_args()
policy = UwmPolicy.from_pretrained(arguments.checkpoint)
for part in (policy, *make_uwm_pre_post_processors(policy.config)):
    part.save_pretrained(arguments.out)
print(f"{arguments.out}: {', '.join(policy.config.input_features)} -> {', '.join(policy.config.output_features)}")
