-- Jobs: handles to work that outlives its request. And texts that are not kept, which wait sealed for their vectors.

-- Where a policy keeps no text it waits here, encrypted, until nothing waits for it any more.
ALTER TABLE contents ADD COLUMN sealed bytea;
-- What is encrypted does not compress.
ALTER TABLE contents ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- One piece of work. Those of kind `embed` wait for the contents in job_contents and are ended by whoever settles the
-- last of these; the others are tasks: `run_after` is set, and a worker claims one as it claims an entry of `waiting`.
-- Whether a PENDING one runs is told by its claims.
CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    tenant int NOT NULL,
    kind text NOT NULL,
    state text NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    -- Of its items, how many have come to an end: with a vector, or without; and of the latter, how many because
    -- somebody deleted, replaced or cancelled them.
    total int NOT NULL DEFAULT 0,
    done int NOT NULL DEFAULT 0,
    failed int NOT NULL DEFAULT 0,
    withdrawn int NOT NULL DEFAULT 0,
    generation int,
    -- What is known of the result from the beginning; the rest is added at the end.
    result jsonb NOT NULL DEFAULT '{}',
    error text,
    request_id text,
    -- A task's own: its input, encrypted; when the task ends it leaves, and is empty from then on.
    input bytea,
    attempts smallint NOT NULL DEFAULT 0,
    run_after timestamptz,
    claim uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
ALTER TABLE jobs ALTER COLUMN input SET STORAGE EXTERNAL;
CREATE INDEX jobs_tenant ON jobs (tenant, created_at, id);
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_tasks ON jobs (tenant, run_after) WHERE run_after IS NOT NULL AND ended_at IS NULL;

-- What a job still waits for, and what came to nothing (`error`); an item that has its vector has no row any more.
CREATE TABLE job_contents (
    tenant int NOT NULL,
    job uuid NOT NULL,
    item text NOT NULL,
    content bigint NOT NULL,
    error text,
    PRIMARY KEY (job, item)
);
CREATE INDEX job_contents_content ON job_contents (content) WHERE error IS NULL;

DO $$
DECLARE
    secured text;
BEGIN
    FOREACH secured IN ARRAY ARRAY['jobs', 'job_contents'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', secured);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', secured);
        EXECUTE format('CREATE POLICY owner ON %I TO {owner} USING (true) WITH CHECK (true)', secured);
        EXECUTE format('CREATE POLICY tenant ON %I TO {server} USING (tenant = this_tenant())', secured);
    END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs, job_contents TO {server};

-- Counts items of jobs that have come to an end, and ends those jobs of which no item is left. `readings` has what a
-- job of one item tells of its text.
CREATE FUNCTION count_in_jobs(of_jobs uuid[], done_items int[], failed_items int[], withdrawn_items int[], why text,
                              readings jsonb[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = likewise, pg_temp AS $$
    WITH counted AS (
        SELECT i.job, i.done, i.failed, i.withdrawn, i.reading
        FROM unnest(of_jobs, done_items, failed_items, withdrawn_items, readings)
             AS i (job, done, failed, withdrawn, reading)
    ), held AS MATERIALIZED (
        SELECT j.id FROM jobs j WHERE j.id IN (SELECT job FROM counted) AND j.state = 'PENDING' ORDER BY j.id FOR UPDATE
    )
    UPDATE jobs j
    SET done = j.done + c.done, failed = j.failed + c.failed, withdrawn = j.withdrawn + c.withdrawn,
        updated_at = now(),
        error = coalesce(j.error, CASE WHEN c.failed > 0 THEN why END),
        result = CASE WHEN j.total = 1 AND c.reading IS NOT NULL THEN j.result || c.reading ELSE j.result END,
        ended_at = CASE WHEN j.done + c.done + j.failed + c.failed >= j.total THEN now() END,
        state = CASE
            WHEN j.done + c.done + j.failed + c.failed < j.total THEN 'PENDING'
            WHEN j.done + c.done > 0 THEN 'SUCCEEDED'
            WHEN j.withdrawn + c.withdrawn >= j.total THEN 'CANCELLED'
            ELSE 'FAILED' END
    FROM counted c WHERE c.job = j.id AND j.id IN (SELECT id FROM held)
$$;

-- Tells the jobs that wait for these contents that nothing will come of them. Who calls holds the contents' locks.
CREATE FUNCTION fail_in_jobs(of_contents bigint[], why text, is_withdrawn boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = likewise, pg_temp AS $$
DECLARE
    of_jobs uuid[];
    items int[];
BEGIN
    WITH over AS (
        UPDATE job_contents SET error = why WHERE content = ANY (of_contents) AND error IS NULL RETURNING job
    ), counted AS (
        SELECT job, count(*)::int AS n FROM over GROUP BY job
    )
    SELECT array_agg(job), array_agg(n) INTO of_jobs, items FROM counted;
    IF of_jobs IS NOT NULL THEN
        PERFORM count_in_jobs(
            of_jobs, array_fill(0, ARRAY[cardinality(of_jobs)]), items,
            CASE WHEN is_withdrawn THEN items ELSE array_fill(0, ARRAY[cardinality(of_jobs)]) END, why,
            array_fill(NULL::jsonb, ARRAY[cardinality(of_jobs)]));
    END IF;
END $$;

-- Gives contents up: nothing waits for them any more, a text that waited sealed leaves, and their jobs hear of it. Who
-- calls holds their locks. They come alive again when somebody sends them again.
CREATE FUNCTION fail_contents(given_up bigint[], why text, is_withdrawn boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = likewise, pg_temp AS $$
BEGIN
    DELETE FROM waiting w USING contents c, generations g
        WHERE c.pk = ANY (given_up) AND g.collection = c.collection AND w.generation = g.id AND w.content = c.pk;
    UPDATE contents SET state = 'failed', reason = why, sealed = NULL WHERE pk = ANY (given_up);
    PERFORM fail_in_jobs(given_up, why, is_withdrawn);
END $$;

-- Entries whose lease ran out while a worker held them: from now on they are claimed alone, so that a text which
-- kills its worker takes no others with it. Those that died alone `most` times are failed.
CREATE OR REPLACE FUNCTION sweep_waiting(most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    swept int;
    dead record;
BEGIN
    WITH lost AS (
        SELECT w.generation, w.content FROM waiting w
        WHERE w.claim IS NOT NULL AND w.run_after <= now() FOR UPDATE SKIP LOCKED
    )
    UPDATE waiting w SET claim = NULL, alone = true, error = 'lease_lost'
    FROM lost WHERE w.generation = lost.generation AND w.content = lost.content;
    GET DIAGNOSTICS swept = ROW_COUNT;
    -- Waiting rows are locked by now, and contents come before them: what another holds is left for the next time.
    FOR dead IN
        SELECT why, array_agg(pk) AS contents FROM (
            SELECT c.pk, (SELECT min(w.error) FROM waiting w
                          WHERE w.content = c.pk AND w.alone AND w.claim IS NULL AND w.attempts >= most) AS why
            FROM contents c
            WHERE c.pk IN (SELECT w.content FROM waiting w WHERE w.alone AND w.claim IS NULL AND w.attempts >= most)
            FOR NO KEY UPDATE SKIP LOCKED
        ) held WHERE why IS NOT NULL GROUP BY why
    LOOP
        PERFORM fail_contents(dead.contents, dead.why, false);
    END LOOP;
    RETURN swept;
END $$;

-- Texts that have waited sealed for longer than anybody promised to keep them, and tasks whose input has; at most so
-- many at a time. Returns how many were given up.
CREATE FUNCTION expire_sealed(after interval, most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    held bigint[];
    tasks int;
BEGIN
    SELECT array_agg(pk) INTO held FROM (
        SELECT c.pk FROM contents c
        WHERE c.pk = ANY (ARRAY(
            SELECT w.content FROM waiting w JOIN contents t ON t.pk = w.content
            WHERE w.entered_at <= now() - after AND t.sealed IS NOT NULL LIMIT most))
        ORDER BY c.pk FOR NO KEY UPDATE SKIP LOCKED
    ) old;
    IF held IS NOT NULL THEN
        PERFORM fail_contents(held, 'text_expired', false);
    END IF;
    UPDATE jobs j SET state = 'FAILED', error = 'text_expired', input = '', claim = NULL, updated_at = now(),
           ended_at = now()
    FROM (SELECT id FROM jobs
          WHERE run_after IS NOT NULL AND ended_at IS NULL AND input IS NOT NULL AND created_at <= now() - after
          ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED) old
    WHERE j.id = old.id;
    GET DIAGNOSTICS tasks = ROW_COUNT;
    RETURN coalesce(cardinality(held), 0) + tasks;
END $$;

-- Jobs that ended so long ago; at most so many at a time.
CREATE FUNCTION forget_jobs(after interval, most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    old uuid[];
BEGIN
    SELECT array_agg(id) INTO old FROM (
        SELECT id FROM jobs WHERE ended_at <= now() - after ORDER BY ended_at LIMIT most FOR UPDATE SKIP LOCKED) o;
    DELETE FROM job_contents WHERE job = ANY (old);
    DELETE FROM jobs WHERE id = ANY (old);
    RETURN coalesce(cardinality(old), 0);
END $$;

-- One task of these kinds that is free, or whose worker died; tenants in turn, from the one after `after_tenant`. Its
-- `attempts` count the workers that it has cost. `run_after` becomes the end of the lease.
CREATE FUNCTION claim_task(kinds text[], of_claim uuid, lease interval, after_tenant int)
RETURNS TABLE (id uuid, tenant int, kind text, input bytea, attempts smallint, request_id text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    wanted uuid;
BEGIN
    SELECT j.id INTO wanted FROM jobs j
        WHERE j.run_after IS NOT NULL AND j.ended_at IS NULL AND j.run_after <= now() AND j.kind = ANY (kinds)
        ORDER BY j.tenant <= after_tenant, j.tenant, j.run_after LIMIT 1 FOR UPDATE SKIP LOCKED;
    RETURN QUERY
        UPDATE jobs j SET attempts = j.attempts + CASE WHEN j.claim IS NULL THEN 0 ELSE 1 END,
            claim = of_claim, run_after = now() + lease, updated_at = now()
        WHERE j.id = wanted RETURNING j.id, j.tenant, j.kind, j.input, j.attempts, j.request_id;
END $$;

-- Where a policy keeps no words there is no table for them: thousands of tenants have as many fewer.
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
    IF (of_policy ->> 'keep_terms')::boolean IS NOT FALSE THEN
        EXECUTE format(
            'CREATE TABLE terms_%s (content bigint PRIMARY KEY, terms int[] NOT NULL, weights {vectors}.sparsevec NOT NULL)',
            made);
        EXECUTE format('ALTER TABLE terms_%s ALTER COLUMN weights SET STORAGE EXTERNAL', made);
        EXECUTE format(
            'CREATE INDEX terms_%s_terms ON terms_%s USING gin (terms) WITH (fastupdate = on, gin_pending_list_limit = 256)',
            made, made);
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON terms_%s TO {server}', made);
    END IF;
    UPDATE collections SET active_generation = make_generation(made, of_model, of_dimension, 'active') WHERE id = made;
    RETURN made;
END $$;

CREATE OR REPLACE FUNCTION drop_collection(wanted int) RETURNS boolean
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
    EXECUTE format('DROP TABLE IF EXISTS terms_%s', wanted);
    FOR of_generation IN SELECT id FROM generations WHERE collection = wanted ORDER BY id LOOP
        DELETE FROM waiting WHERE generation = of_generation;
        EXECUTE format('DROP TABLE vec_%s', of_generation);
    END LOOP;
    DELETE FROM record_fields WHERE collection = wanted;
    DELETE FROM records WHERE collection = wanted;
    PERFORM fail_in_jobs(ARRAY(
        SELECT j.content FROM job_contents j JOIN contents c ON c.pk = j.content
        WHERE c.collection = wanted AND j.error IS NULL), 'deleted', true);
    DELETE FROM contents WHERE collection = wanted;
    DELETE FROM collections WHERE id = wanted;
    RETURN true;
END $$;

-- Gives back what a worker still holds under these claims. No attempt is counted: it lives to say so. Returns how many
-- it could not have, since a transaction that was cut off has not ended on the server yet.
DROP FUNCTION give_back_waiting(uuid[]);
CREATE FUNCTION give_back_waiting(claims uuid[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
BEGIN
    UPDATE waiting w
    SET claim = NULL, run_after = now(), attempts = greatest(0, w.attempts - CASE WHEN w.alone THEN 1 ELSE 0 END)
    FROM (SELECT generation, content FROM waiting WHERE claim = ANY (claims) FOR UPDATE SKIP LOCKED) ours
    WHERE w.generation = ours.generation AND w.content = ours.content;
    RETURN (SELECT count(*) FROM waiting WHERE claim = ANY (claims));
END $$;

-- A worker from before this knows neither sealed texts nor jobs, and would fail the ones and leave the others open. So
-- the function that it claims with is gone: it fails, loudly, until its program is the present one.
DROP FUNCTION claim_waiting(text[], uuid, interval, int, int, boolean, int[]);

-- Claims up to `most` free entries that wait for one of `models`, but for those of the `resting` generations. Tenants
-- take turns, up to 32 of them share the claim equally, and what those with few entries leave goes to the others.
-- Entries whose worker died come one at a time, when `only_alone` asks for them.
CREATE FUNCTION claim_entries(
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

-- What stored vectors of a model were made with, of every tenant: the latest of each space, some of them.
CREATE FUNCTION spaces_of_model(of_model text) RETURNS TABLE (space text, dimension int, probe float4[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
    SELECT DISTINCT ON (g.space, g.dimension) g.space, g.dimension, g.probe FROM generations g
    WHERE g.model = of_model AND g.space IS NOT NULL AND g.state <> 'retired'
    ORDER BY g.space, g.dimension, g.id DESC LIMIT 100
$$;

REVOKE EXECUTE ON FUNCTION
    claim_entries(text[], uuid, interval, int, int, boolean, int[]), spaces_of_model(text), count_in_jobs(uuid[], int[], int[], int[], text, jsonb[]), fail_in_jobs(bigint[], text, boolean),
    fail_contents(bigint[], text, boolean), expire_sealed(interval, int), forget_jobs(interval, int),
    claim_task(text[], uuid, interval, int), give_back_waiting(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    claim_entries(text[], uuid, interval, int, int, boolean, int[]), spaces_of_model(text), count_in_jobs(uuid[], int[], int[], int[], text, jsonb[]), fail_in_jobs(bigint[], text, boolean),
    fail_contents(bigint[], text, boolean), expire_sealed(interval, int), forget_jobs(interval, int),
    claim_task(text[], uuid, interval, int), give_back_waiting(uuid[]) TO {server};
