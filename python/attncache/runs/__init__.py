"""Many prompts on disk: directories of runs, one cache each, opened one by one or asked all at once."""
