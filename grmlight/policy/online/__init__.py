"""Online optimization against rewards: PPO, RLOO and GRPO."""
