"""The command line of fxgrow; installed as ``fxgrow_cli``."""
