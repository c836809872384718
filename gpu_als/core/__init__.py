"""The mathematics: one row problem, its objectives and its solvers, on any array module."""
