"""Beyond one machine: replicas of a model on Ray Serve, and batch jobs on Ray Data. Only `--replicas` and `--ray` import it, with
the extra `ray`."""
