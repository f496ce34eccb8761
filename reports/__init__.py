"""What scores say: accuracy, score files, statistics and pictures of them. This room imports no other one."""
