"""Rewards for trainers that are not ours; each module needs its framework only where it is called.

trl       a reward function for GRPOTrainer, RLOOTrainer and OnlineDPOTrainer
verl      a custom reward function
openrlhf  what `/get_reward` of `sightline serve scorer-http` answers
"""
