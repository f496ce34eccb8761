"""Evaluates scores: accuracy, score files, statistics and pictures. This package imports no other one of ours."""
