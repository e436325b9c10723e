"""The contenders: the same three endpoints, each with another idea of durability."""
