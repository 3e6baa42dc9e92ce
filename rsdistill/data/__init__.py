"""Data: where tiles lie, and how they become batches."""
