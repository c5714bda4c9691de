"""What results say: significance, errors, figures, reports."""
