"""What reports are made of: rows, values of charts, and the drawing of both for print and as a page."""
