"""The cluster: master, workers, client, command line and dashboard."""
