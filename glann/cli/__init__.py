"""The `glann` command. Only commands that need torch import it, so that --help is fast."""
