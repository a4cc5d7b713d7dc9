"""From results to what a person looks at: summary, table, figures, animations and a page."""
