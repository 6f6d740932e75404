"""`python -m glann` and `glann`. Ctrl-C is one line even while the command line is being imported."""

from glann.runtime.reporting import one_line_errors
from glann.runtime.signals import end_in_order


def main() -> None:
    """Run the command line."""
    with one_line_errors(), end_in_order():
        from glann.cli.commands import run  # noqa: PLC0415

        run()


if __name__ == "__main__":
    main()
