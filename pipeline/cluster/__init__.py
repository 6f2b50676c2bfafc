"""The only place that imports ray: training, tuning and jobs on a cluster."""
