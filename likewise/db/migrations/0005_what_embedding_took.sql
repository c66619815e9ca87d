-- What embedding took, of whom, by the hour: texts, tokens, and US dollars paid and not paid.

-- `texts` were answered with a vector, `cached` of them by the cache; a model embedded `generated` texts of `tokens`, of
-- which `estimated` were guessed; `truncated` were cut off.
CREATE TABLE usage (
    tenant int NOT NULL,
    model text NOT NULL,
    hour timestamptz NOT NULL,
    texts bigint NOT NULL DEFAULT 0,
    cached bigint NOT NULL DEFAULT 0,
    generated bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    truncated bigint NOT NULL DEFAULT 0,
    estimated bigint NOT NULL DEFAULT 0,
    cost float8 NOT NULL DEFAULT 0,
    cost_avoided float8 NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, model, hour)
);
ALTER TABLE usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON usage TO {owner} USING (true) WITH CHECK (true);
CREATE POLICY tenant ON usage TO {server} USING (tenant = this_tenant());
-- Added to by the function below only: nobody who serves takes away what was used.
GRANT SELECT ON usage TO {server};

-- The sums at the moment from which a tenant counts anew; null if it never asked for that.
ALTER TABLE tenants ADD COLUMN metrics_reset jsonb;
GRANT UPDATE (metrics_reset) ON tenants TO {server};

-- Adds rows of any tenants, in one transaction; its number tells, should nobody hear how it ended, whether it did.
CREATE FUNCTION add_usage(used jsonb) RETURNS xid8
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
BEGIN
    -- In the order of their keys: two processes add to the same rows.
    INSERT INTO usage AS kept
        SELECT * FROM jsonb_populate_recordset(NULL::usage, used) one ORDER BY one.tenant, one.model, one.hour
    ON CONFLICT (tenant, model, hour) DO UPDATE
    SET texts = kept.texts + excluded.texts, cached = kept.cached + excluded.cached,
        generated = kept.generated + excluded.generated, tokens = kept.tokens + excluded.tokens,
        truncated = kept.truncated + excluded.truncated, estimated = kept.estimated + excluded.estimated,
        cost = kept.cost + excluded.cost, cost_avoided = kept.cost_avoided + excluded.cost_avoided;
    RETURN pg_current_xact_id();
END $$;

REVOKE EXECUTE ON FUNCTION add_usage(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION add_usage(jsonb) TO {server};
