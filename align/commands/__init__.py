"""The work of the `align` command's subcommands that are about data files or one model, not about a recipe."""
