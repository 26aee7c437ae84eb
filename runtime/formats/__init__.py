"""Foreign files, in and out: masks, points, boxes and projects of other tools."""
