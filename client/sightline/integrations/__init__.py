"""Rewards for other trainers; a module needs its framework only when it is called.

trl       a reward function for GRPOTrainer, RLOOTrainer and OnlineDPOTrainer
verl      a custom reward function
openrlhf  the answers of `/get_reward` in `sightline serve scorer-http`
"""
