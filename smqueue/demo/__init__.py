"""What ``smqueue demo`` runs: its machines, the plan of its orders, and what replays event logs."""
