"""Rewards for other trainers; each module needs its framework only when it is called.

trl       a reward function for GRPOTrainer, RLOOTrainer and OnlineDPOTrainer
verl      a custom reward function
openrlhf  what `/get_reward` of `sightline serve scorer-http` answers
"""
