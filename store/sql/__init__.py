"""What processes share in SQL: the tables, and one repository a subject."""
