"""The GPU kit: what distcnn says about GPUs, as checks that write a report. Joins every room."""
