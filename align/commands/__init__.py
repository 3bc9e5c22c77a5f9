"""The work of the `align` command's subcommands that are about one model, not about a recipe."""
