-- Where tenants are declared, a name that nobody declared must not make one.

CREATE FUNCTION tenant_known(wanted text) RETURNS int
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT id FROM tenants WHERE name = wanted
$$;

REVOKE EXECUTE ON FUNCTION tenant_known(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_known(text) TO {server};
