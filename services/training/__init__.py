"""Fine-tuning jobs: checked, started, followed, changed."""
