"""Rollouts: answers that a policy generates while it is trained.

engine.py has the interface; transformers_engine.py generates in the training process, and
vllm_engine.py asks a vLLM server. Group methods (GRPO, RLOO), PPO and on-policy distillation take
either.
"""
