"""Who calls and what they may do: credentials, callers with tenant and scopes, quotas."""
