"""Turn results into what a person looks at: summary, table, figures, animations and a page."""
