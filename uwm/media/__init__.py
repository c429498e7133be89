"""The wider tasks as thin recipes: streams, a pattern and a metric over the same model and the same loop."""
