-- The queue: which request entered an entry, how much text it has, and claims that cost the same whatever else waits.

-- `tokens` is an estimate (4 characters each): how much waits is asked for every few seconds, without the texts.
ALTER TABLE waiting ADD COLUMN request_id text, ADD COLUMN tokens int NOT NULL DEFAULT 0;

-- By generation, so that what waits for a model that is away is passed over at once, however much it is.
DROP INDEX waiting_turn;
CREATE INDEX waiting_turn ON waiting (alone, tenant, generation, lane, run_after) WHERE claim IS NULL;

-- The generations of up to `most_tenants` tenants, from the one after `after_tenant` round to it, in which an entry is
-- free and may be claimed. One that has entries only of others costs one look at the index.
CREATE FUNCTION claimable(models text[], after_tenant int, only_alone boolean, resting int[], most_tenants int)
RETURNS TABLE (tenant int, generations int[])
LANGUAGE plpgsql STABLE SET search_path = likewise, pg_temp AS $$
DECLARE
    at_tenant int := after_tenant;
    at_generation int := 2147483647;
    gone_round boolean := false;
    found_tenants int := 0;
BEGIN
    tenant := NULL;
    LOOP
        SELECT w.tenant, w.generation INTO at_tenant, at_generation FROM waiting w
            WHERE w.alone = only_alone AND w.claim IS NULL AND (w.tenant, w.generation) > (at_tenant, at_generation)
            ORDER BY w.tenant, w.generation LIMIT 1;
        IF tenant IS DISTINCT FROM at_tenant AND tenant IS NOT NULL THEN
            RETURN NEXT;
            found_tenants := found_tenants + 1;
            EXIT WHEN found_tenants >= most_tenants;
            tenant := NULL;
        END IF;
        IF at_tenant IS NULL OR gone_round AND at_tenant > after_tenant THEN
            EXIT WHEN gone_round;
            gone_round := true;
            at_tenant := -1;
            at_generation := -1;
        ELSIF EXISTS (
            SELECT FROM generations g
            WHERE g.id = at_generation AND g.model = ANY (models) AND g.state <> 'retired' AND g.id <> ALL (resting)
        ) AND EXISTS (
            SELECT FROM waiting w
            WHERE w.alone = only_alone AND w.claim IS NULL AND w.tenant = at_tenant AND w.generation = at_generation
              AND w.run_after <= now()
        ) THEN
            generations := CASE WHEN tenant IS NULL THEN ARRAY[]::int[] ELSE generations END || at_generation;
            tenant := at_tenant;
        END IF;
    END LOOP;
END $$;

-- Claims up to `most` free entries that wait for one of `models`, but for those of the `resting` generations. Tenants
-- take turns, up to 32 of them share the claim equally, and what those with few entries leave goes to the others.
-- Entries whose worker died come one at a time, when `only_alone` asks for them.
DROP FUNCTION claim_waiting(text[], uuid, interval, int, int, boolean, int[]);
CREATE FUNCTION claim_waiting(
    models text[], of_claim uuid, lease interval, most int, after_tenant int, only_alone boolean, resting int[])
RETURNS TABLE (
    tenant int, collection int, generation int, content bigint, attempts smallint, lane smallint, request_id text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    turn record;
    at_most int := CASE WHEN only_alone THEN 1 ELSE most END;
    taken int;
BEGIN
    FOR turn IN
        WITH turns AS MATERIALIZED (
            SELECT t.tenant, t.generations, row_number() OVER () AS place, count(*) OVER () AS tenants
            FROM claimable(models, after_tenant, only_alone, resting, CASE WHEN only_alone THEN 1 ELSE 32 END) t
        )
        -- Those with few entries first, so that what they leave is known when the others come.
        SELECT t.tenant, t.generations, row_number() OVER by_size AS place, t.tenants
        FROM turns t CROSS JOIN LATERAL (
            SELECT count(*) AS entries FROM (
                SELECT FROM unnest(t.generations) AS g CROSS JOIN LATERAL (
                    SELECT FROM waiting w
                    WHERE w.alone = only_alone AND w.claim IS NULL AND w.tenant = t.tenant AND w.generation = g
                    LIMIT at_most
                ) one LIMIT at_most
            ) few
        ) size
        WINDOW by_size AS (ORDER BY size.entries, t.place)
        ORDER BY place
    LOOP
        RETURN QUERY
            WITH free AS (
                SELECT one.generation, one.content FROM unnest(turn.generations) AS g CROSS JOIN LATERAL (
                    SELECT w.generation, w.content, w.lane, w.run_after FROM waiting w
                    WHERE w.alone = only_alone AND w.claim IS NULL AND w.tenant = turn.tenant AND w.generation = g
                      AND w.run_after <= now()
                    ORDER BY w.lane, w.run_after LIMIT greatest(1, at_most / (turn.tenants - turn.place + 1))
                    FOR UPDATE SKIP LOCKED
                ) one
                ORDER BY one.lane, one.run_after LIMIT greatest(1, at_most / (turn.tenants - turn.place + 1))
            ), claimed AS (
                UPDATE waiting w
                SET claim = of_claim, run_after = now() + lease,
                    attempts = w.attempts + CASE WHEN w.alone THEN 1 ELSE 0 END
                FROM free WHERE w.generation = free.generation AND w.content = free.content
                RETURNING w.tenant, w.generation, w.content, w.attempts, w.lane, w.request_id
            )
            SELECT c.tenant, g.collection, c.generation, c.content, c.attempts, c.lane, c.request_id
            FROM claimed c JOIN generations g ON g.id = c.generation;
        GET DIAGNOSTICS taken = ROW_COUNT;
        at_most := at_most - taken;
        EXIT WHEN at_most <= 0;
    END LOOP;
END $$;

-- How much text waits for each model, of each tenant, in tokens.
CREATE FUNCTION waiting_tokens() RETURNS TABLE (tenant int, model text, tokens bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT w.tenant, g.model, sum(w.tokens)::bigint
    FROM (SELECT tenant, generation, sum(tokens) AS tokens FROM waiting GROUP BY tenant, generation) w
    JOIN generations g ON g.id = w.generation
    WHERE g.state <> 'retired' GROUP BY w.tenant, g.model
$$;

-- Words are added to the index some hundred kilobytes at a time: one by one they took most of the time of storing. What
-- is not in it yet is a list that searches read as well, too short (32 pages) to be felt.
DO $$
DECLARE
    of_collection int;
BEGIN
    FOR of_collection IN SELECT id FROM collections LOOP
        EXECUTE format('ALTER INDEX terms_%s_terms SET (fastupdate = on, gin_pending_list_limit = 256)', of_collection);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION make_collection(
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
    EXECUTE format(
        'CREATE INDEX terms_%s_terms ON terms_%s USING gin (terms) WITH (fastupdate = on, gin_pending_list_limit = 256)',
        made, made);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON terms_%s TO {server}', made);
    UPDATE collections SET active_generation = make_generation(made, of_model, of_dimension, 'active') WHERE id = made;
    RETURN made;
END $$;

-- Every writer of a collection would lock its generation's one row to check these. The collection's lock keeps writers
-- out while a generation goes, and who removes one removes its entries with it.
ALTER TABLE waiting DROP CONSTRAINT waiting_generation_fkey;

REVOKE EXECUTE ON FUNCTION
    claimable(text[], int, boolean, int[], int), claim_waiting(text[], uuid, interval, int, int, boolean, int[]),
    waiting_tokens()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_waiting(text[], uuid, interval, int, int, boolean, int[]), waiting_tokens() TO {server};
