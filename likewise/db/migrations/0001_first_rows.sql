-- Tenants, collections, generations, contents, records and the queue of contents that wait for a vector.
-- {server} is the role that serves; {owner} owns and migrates; {vectors} is the schema that pgvector lives in.

CREATE TABLE tenants (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE collections (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant int NOT NULL REFERENCES tenants,
    name text NOT NULL,
    kind text NOT NULL,
    active_generation int,
    analyzer text NOT NULL,
    terms_total bigint NOT NULL DEFAULT 0,
    contents_total bigint NOT NULL DEFAULT 0,
    layout int NOT NULL DEFAULT 1,
    policy jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);

CREATE TABLE generations (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant int NOT NULL REFERENCES tenants,
    collection int NOT NULL REFERENCES collections ON DELETE CASCADE,
    model text NOT NULL,
    dimension int NOT NULL,
    -- What the first process that made vectors here used; null until then.
    space text,
    numerics text,
    probe float4[],
    background float4 NOT NULL DEFAULT 0,
    background_from bigint NOT NULL DEFAULT 0,
    state text NOT NULL CHECK (state IN ('building', 'active', 'retired')),
    index_state text NOT NULL DEFAULT 'none' CHECK (index_state IN ('none', 'building', 'ready')),
    layout int NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX generations_collection ON generations (collection);
CREATE INDEX generations_tenant ON generations (tenant);

CREATE TABLE contents (
    pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant int NOT NULL,
    collection int NOT NULL,
    text_hash bytea NOT NULL,
    text text,
    chars int NOT NULL,
    state text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'failed', 'skipped')),
    reason text,
    UNIQUE (collection, text_hash)
);

CREATE TABLE records (
    pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant int NOT NULL,
    collection int NOT NULL,
    id text NOT NULL,
    content bigint NOT NULL REFERENCES contents,
    parent text,
    status text,
    occurred_at timestamptz,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (collection, id)
);
CREATE INDEX records_content ON records (content);
CREATE INDEX records_parent ON records (collection, parent) WHERE parent IS NOT NULL;
CREATE INDEX records_occurred_at ON records (collection, occurred_at) WHERE occurred_at IS NOT NULL;

-- One row for each indexed field of a record (for a list, one for each scalar in it). `value` holds the first
-- 256 characters, because a btree entry has a limit: the payload itself decides among the rows it finds.
CREATE TABLE record_fields (
    tenant int NOT NULL,
    collection int NOT NULL,
    field text NOT NULL,
    value text,
    number float8,
    record bigint NOT NULL REFERENCES records ON DELETE CASCADE,
    content bigint NOT NULL
);
CREATE INDEX record_fields_value ON record_fields (collection, field, value) WHERE value IS NOT NULL;
CREATE INDEX record_fields_number ON record_fields (collection, field, number) WHERE number IS NOT NULL;
CREATE INDEX record_fields_record ON record_fields (record);

-- A row without a claim is free when run_after is past. A claim moves run_after to the end of its lease; an entry whose
-- worker died is set free by sweep_waiting, and is then claimed alone.
CREATE TABLE waiting (
    tenant int NOT NULL,
    generation int NOT NULL REFERENCES generations ON DELETE CASCADE,
    content bigint NOT NULL,
    lane smallint NOT NULL,
    attempts smallint NOT NULL DEFAULT 0,
    alone boolean NOT NULL DEFAULT false,
    run_after timestamptz NOT NULL DEFAULT now(),
    claim uuid,
    error text,
    entered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (generation, content)
);
CREATE INDEX waiting_turn ON waiting (tenant, alone, lane, run_after);
CREATE INDEX waiting_claim ON waiting (claim) WHERE claim IS NOT NULL;
CREATE INDEX waiting_alone ON waiting (attempts) WHERE alone;

-- Who may see what. The owner's own policy is what the functions below run under.
DO $$
DECLARE
    secured text;
BEGIN
    FOREACH secured IN ARRAY ARRAY['tenants', 'collections', 'generations', 'contents', 'records', 'record_fields', 'waiting'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', secured);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', secured);
        EXECUTE format('CREATE POLICY owner ON %I TO {owner} USING (true) WITH CHECK (true)', secured);
        EXECUTE format(
            'CREATE POLICY tenant ON %I TO {server} USING (%I = nullif(current_setting(''likewise.tenant'', true), '''')::int)',
            secured, CASE secured WHEN 'tenants' THEN 'id' ELSE 'tenant' END);
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA likewise TO {server};
GRANT SELECT ON tenants, schema_migrations TO {server};
GRANT SELECT ON collections, generations TO {server};
GRANT UPDATE (terms_total, contents_total) ON collections TO {server};
GRANT UPDATE (space, numerics, probe) ON generations TO {server};
GRANT SELECT, INSERT, UPDATE, DELETE ON contents, records, record_fields, waiting TO {server};

-- The closed list of what reaches across tenants or makes tables.

CREATE FUNCTION this_tenant() RETURNS int LANGUAGE sql STABLE
    RETURN nullif(current_setting('likewise.tenant', true), '')::int;

CREATE FUNCTION tenant_named(wanted text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    found int;
BEGIN
    SELECT id INTO found FROM tenants WHERE name = wanted;
    IF found IS NULL THEN
        INSERT INTO tenants (name) VALUES (wanted) ON CONFLICT (name) DO NOTHING;
        SELECT id INTO found FROM tenants WHERE name = wanted;
    END IF;
    RETURN found;
END $$;

-- A collection takes writers under a shared lock of this pair of keys; its shape changes under the exclusive one.
CREATE FUNCTION lock_collection(wanted int) RETURNS void LANGUAGE sql VOLATILE
    AS $$ SELECT pg_advisory_xact_lock(7719, wanted) $$;

CREATE FUNCTION make_generation(of_collection int, of_model text, of_dimension int, in_state text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    owner_tenant int;
    made int;
BEGIN
    PERFORM lock_collection(of_collection);
    SELECT tenant INTO owner_tenant FROM collections WHERE id = of_collection AND tenant = this_tenant();
    IF owner_tenant IS NULL THEN
        RAISE no_data_found;
    END IF;
    INSERT INTO generations (tenant, collection, model, dimension, state)
        VALUES (owner_tenant, of_collection, of_model, of_dimension, in_state) RETURNING id INTO made;
    EXECUTE format(
        'CREATE TABLE vec_%s (content bigint PRIMARY KEY, embedding {vectors}.halfvec(%s) NOT NULL, tokens int NOT NULL, '
        'truncated int NOT NULL, chars_read int NOT NULL, embedded_at timestamptz NOT NULL DEFAULT now())',
        made, of_dimension);
    EXECUTE format('ALTER TABLE vec_%s ALTER COLUMN embedding SET STORAGE PLAIN', made);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON vec_%s TO {server}', made);
    INSERT INTO waiting (tenant, generation, content, lane)
        SELECT owner_tenant, made, pk, 1 FROM contents WHERE collection = of_collection AND state = 'live' ORDER BY pk;
    RETURN made;
END $$;

CREATE FUNCTION make_collection(
    of_name text, of_kind text, of_analyzer text, of_policy jsonb, of_model text, of_dimension int, most int)
RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    made int;
BEGIN
    PERFORM pg_advisory_xact_lock(7720, this_tenant());
    IF (SELECT count(*) FROM collections WHERE tenant = this_tenant()) >= most THEN
        RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = 'too many collections';
    END IF;
    INSERT INTO collections (tenant, name, kind, analyzer, policy)
        VALUES (this_tenant(), of_name, of_kind, of_analyzer, of_policy) RETURNING id INTO made;
    EXECUTE format(
        'CREATE TABLE terms_%s (content bigint PRIMARY KEY, terms int[] NOT NULL, weights {vectors}.sparsevec NOT NULL)', made);
    EXECUTE format('ALTER TABLE terms_%s ALTER COLUMN weights SET STORAGE EXTERNAL', made);
    -- Entries of the pending list are not in the index proper, and every search would read them one by one.
    EXECUTE format('CREATE INDEX terms_%s_terms ON terms_%s USING gin (terms) WITH (fastupdate = off)', made, made);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON terms_%s TO {server}', made);
    UPDATE collections SET active_generation = make_generation(made, of_model, of_dimension, 'active') WHERE id = made;
    RETURN made;
END $$;

CREATE FUNCTION drop_collection(wanted int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    of_generation int;
BEGIN
    PERFORM lock_collection(wanted);
    PERFORM 1 FROM collections WHERE id = wanted AND tenant = this_tenant() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM contents WHERE collection = wanted ORDER BY pk FOR UPDATE;
    FOR of_generation IN SELECT id FROM generations WHERE collection = wanted ORDER BY id LOOP
        DELETE FROM waiting WHERE generation = of_generation;
        EXECUTE format('DROP TABLE vec_%s', of_generation);
    END LOOP;
    EXECUTE format('DROP TABLE terms_%s', wanted);
    DELETE FROM record_fields WHERE collection = wanted;
    DELETE FROM records WHERE collection = wanted;
    DELETE FROM contents WHERE collection = wanted;
    DELETE FROM collections WHERE id = wanted;
    RETURN true;
END $$;

-- Claims up to `most` free entries that wait for one of `models`, but for those of the `resting` generations. Tenants
-- take turns: the search for them starts after `after_tenant` and goes round, and up to 32 of them share the claim.
-- Entries whose worker died come one at a time, when `only_alone` asks for them.
CREATE FUNCTION claim_waiting(
    models text[], of_claim uuid, lease interval, most int, after_tenant int, only_alone boolean, resting int[])
RETURNS TABLE (tenant int, collection int, generation int, content bigint, attempts smallint, lane smallint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    turn int := after_tenant;
    gone_round boolean := false;
    turns int[] := ARRAY[]::int[];
    share int;
    at_most int := CASE WHEN only_alone THEN 1 ELSE most END;
BEGIN
    WHILE cardinality(turns) < 32 LOOP
        SELECT min(w.tenant) INTO turn FROM waiting w
            WHERE w.tenant > turn AND (NOT gone_round OR w.tenant <= after_tenant);
        IF turn IS NULL THEN
            EXIT WHEN gone_round;
            gone_round := true;
            turn := -1;
        -- One whose entries cannot be claimed now takes nobody's turn.
        ELSIF EXISTS (
            SELECT 1 FROM waiting w
            WHERE w.tenant = turn AND w.alone = only_alone AND w.claim IS NULL AND w.run_after <= now()
              AND w.generation IN (SELECT g.id FROM generations g
                                   WHERE g.tenant = turn AND g.model = ANY (models) AND g.state <> 'retired'
                                         AND g.id <> ALL (resting))
        ) THEN
            turns := turns || turn;
        END IF;
    END LOOP;
    share := greatest(1, at_most / greatest(1, cardinality(turns)));
    FOREACH turn IN ARRAY turns LOOP
        EXIT WHEN at_most <= 0;
        RETURN QUERY
            WITH free AS (
                SELECT w.generation, w.content
                FROM waiting w
                WHERE w.tenant = turn AND w.alone = only_alone AND w.claim IS NULL AND w.run_after <= now()
                  AND w.generation IN (SELECT g.id FROM generations g
                                       WHERE g.tenant = turn AND g.model = ANY (models) AND g.state <> 'retired'
                                         AND g.id <> ALL (resting))
                ORDER BY w.lane, w.run_after
                LIMIT least(share, at_most)
                FOR UPDATE SKIP LOCKED
            ), claimed AS (
                UPDATE waiting w
                SET claim = of_claim, run_after = now() + lease,
                    attempts = w.attempts + CASE WHEN w.alone THEN 1 ELSE 0 END
                FROM free WHERE w.generation = free.generation AND w.content = free.content
                RETURNING w.tenant, w.generation, w.content, w.attempts, w.lane
            )
            SELECT c.tenant, g.collection, c.generation, c.content, c.attempts, c.lane
            FROM claimed c JOIN generations g ON g.id = c.generation;
        IF FOUND THEN
            at_most := at_most - share;
        END IF;
    END LOOP;
END $$;

-- Entries whose lease ran out while a worker held them: from now on they are claimed alone, so that a text which
-- kills its worker takes no others with it. Those that died alone `most` times are failed.
CREATE FUNCTION sweep_waiting(most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    swept int;
    held bigint[];
BEGIN
    WITH lost AS (
        SELECT w.generation, w.content FROM waiting w
        WHERE w.claim IS NOT NULL AND w.run_after <= now() FOR UPDATE SKIP LOCKED
    )
    UPDATE waiting w SET claim = NULL, alone = true, error = 'lease_lost'
    FROM lost WHERE w.generation = lost.generation AND w.content = lost.content;
    GET DIAGNOSTICS swept = ROW_COUNT;
    -- Waiting rows are locked by now, and contents come before them: what another holds is left for the next time.
    SELECT array_agg(locked.pk) INTO held FROM (
        SELECT c.pk FROM contents c
        WHERE c.pk IN (SELECT w.content FROM waiting w WHERE w.alone AND w.claim IS NULL AND w.attempts >= most)
        FOR NO KEY UPDATE SKIP LOCKED
    ) locked;
    WITH dead AS (
        DELETE FROM waiting w WHERE w.alone AND w.claim IS NULL AND w.attempts >= most AND w.content = ANY (held)
        RETURNING w.content, w.error
    )
    UPDATE contents c SET state = 'failed', reason = dead.error FROM dead WHERE c.pk = dead.content;
    RETURN swept;
END $$;

-- Gives back what a worker still holds under these claims. No attempt is counted: it lives to say so.
CREATE FUNCTION give_back_waiting(claims uuid[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    UPDATE waiting w
    SET claim = NULL, run_after = now(), attempts = greatest(0, w.attempts - CASE WHEN w.alone THEN 1 ELSE 0 END)
    FROM (SELECT generation, content FROM waiting WHERE claim = ANY (claims) FOR UPDATE SKIP LOCKED) ours
    WHERE w.generation = ours.generation AND w.content = ours.content
$$;

-- The models that anything waits for, and the age in seconds of the oldest entry of each.
CREATE FUNCTION waiting_models() RETURNS TABLE (model text, oldest float8)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT g.model, max(extract(epoch FROM now() - first.entered_at))::float8
    FROM generations g
    CROSS JOIN LATERAL (SELECT w.entered_at FROM waiting w WHERE w.generation = g.id ORDER BY w.content LIMIT 1) first
    WHERE g.state <> 'retired'
    GROUP BY g.model
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA likewise FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    this_tenant(), tenant_named(text), lock_collection(int), make_generation(int, text, int, text),
    make_collection(text, text, text, jsonb, text, int, int), drop_collection(int),
    claim_waiting(text[], uuid, interval, int, int, boolean, int[]), sweep_waiting(int), give_back_waiting(uuid[]),
    waiting_models() TO {server};
