"""How fast the library and the experiments are: each section is a function from settings to the rows of a table."""
