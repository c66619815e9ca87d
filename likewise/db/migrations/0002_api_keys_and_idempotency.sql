-- The keys that callers show, and the requests that are done once however often they come.

-- A key itself is nowhere: `digest` is its SHA-256, and `prefix` the part of it that may be shown.
CREATE TABLE api_keys (
    prefix text PRIMARY KEY,
    digest bytea NOT NULL,
    tenant int NOT NULL REFERENCES tenants,
    name text,
    scopes text[] NOT NULL CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'write', 'admin']),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_tenant ON api_keys (tenant);

-- A request that came with an Idempotency-Key. `route` is a template and `body_digest` covers the address and the body,
-- so a row tells who sent what as little as a digest does; `answer` holds counts, ids and our own words.
CREATE TABLE idempotency (
    tenant int NOT NULL REFERENCES tenants,
    method text NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    body_digest bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'done')),
    -- Who runs it, and until when others believe that; null once it is done.
    claim uuid,
    lease_until timestamptz,
    status smallint,
    -- Not jsonb, which would change the order of its fields.
    answer json,
    expires timestamptz NOT NULL,
    PRIMARY KEY (tenant, method, route, key),
    CHECK (state = 'running' AND claim IS NOT NULL AND lease_until IS NOT NULL OR state = 'done' AND status IS NOT NULL)
);
CREATE INDEX idempotency_expires ON idempotency (expires);

DO $$
DECLARE
    secured text;
BEGIN
    FOREACH secured IN ARRAY ARRAY['api_keys', 'idempotency'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', secured);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', secured);
        EXECUTE format('CREATE POLICY owner ON %I TO {owner} USING (true) WITH CHECK (true)', secured);
    END LOOP;
END $$;

-- The role that serves may look at keys through the functions below and not otherwise.
CREATE POLICY tenant ON idempotency TO {server} USING (tenant = this_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency TO {server};

-- What a key of this prefix may do, unless it is revoked or past its end. Whether the caller has it shows its digest.
CREATE FUNCTION live_api_key(wanted text) RETURNS TABLE (digest bytea, tenant int, scopes text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT k.digest, k.tenant, k.scopes FROM api_keys k
    WHERE k.prefix = wanted AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
$$;

CREATE FUNCTION any_api_key() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT EXISTS (SELECT FROM api_keys k WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()))
$$;

-- Other processes count uses too, and may have seen later ones.
CREATE FUNCTION api_keys_used(prefixes text[], times timestamptz[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    UPDATE api_keys k SET last_used_at = used.at
    FROM (SELECT s.prefix, u.at
          FROM unnest(prefixes, times) AS u (prefix, at) JOIN api_keys s ON s.prefix = u.prefix
          ORDER BY s.prefix FOR NO KEY UPDATE OF s) used
    WHERE k.prefix = used.prefix AND (k.last_used_at IS NULL OR k.last_used_at < used.at)
$$;

CREATE FUNCTION forget_expired_requests(most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    forgotten int;
BEGIN
    DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM idempotency i WHERE i.expires <= now() ORDER BY i.expires LIMIT most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA likewise FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    live_api_key(text), any_api_key(), api_keys_used(text[], timestamptz[]), forget_expired_requests(int) TO {server};
