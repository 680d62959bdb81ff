"""What a training run is made of beside its model: exact steps, figures, checkpoints, sharding, the reference."""
