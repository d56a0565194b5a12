"""What training draws from. Each source yields (Condition, Target) by step: the same step always gives the same pair."""
