-- Views: one record is compared in several ways, each with contents, generations and words of its own.

-- 0 is the first view; the others have a row in collection_views. A content belongs to one view.
ALTER TABLE contents ADD COLUMN view smallint NOT NULL DEFAULT 0;
ALTER TABLE contents DROP CONSTRAINT contents_collection_text_hash_key;
ALTER TABLE contents ADD CONSTRAINT contents_collection_view_text_hash_key UNIQUE (collection, view, text_hash);
-- Where `model` is empty no model embeds: the vectors are made from records.
ALTER TABLE generations ADD COLUMN view smallint NOT NULL DEFAULT 0;
-- `collections.active_generation` is the first view's.
CREATE UNIQUE INDEX generations_active ON generations (collection, view) WHERE state = 'active';

-- The views beside the first. Each that has `terms` has a table of them, terms_<collection>_<view>.
CREATE TABLE collection_views (
    tenant int NOT NULL,
    collection int NOT NULL REFERENCES collections ON DELETE CASCADE,
    view smallint NOT NULL CHECK (view > 0),
    name text NOT NULL,
    terms boolean NOT NULL,
    terms_total bigint NOT NULL DEFAULT 0,
    contents_total bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (collection, view),
    UNIQUE (collection, name)
);

-- The contents that a record has in them; `records.content` is the first view's.
CREATE TABLE record_contents (
    tenant int NOT NULL,
    collection int NOT NULL,
    view smallint NOT NULL CHECK (view > 0),
    record bigint NOT NULL REFERENCES records ON DELETE CASCADE,
    content bigint NOT NULL REFERENCES contents,
    PRIMARY KEY (record, view) INCLUDE (content, tenant)
);
CREATE INDEX record_contents_content ON record_contents (content) INCLUDE (record, tenant);

DO $$
DECLARE
    secured text;
BEGIN
    FOREACH secured IN ARRAY ARRAY['collection_views', 'record_contents'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', secured);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', secured);
        EXECUTE format('CREATE POLICY owner ON %I TO {owner} USING (true) WITH CHECK (true)', secured);
        EXECUTE format(
            'CREATE POLICY tenant ON %I TO {server} USING (tenant = nullif(current_setting(''likewise.tenant'', true), '''')::int)',
            secured);
    END LOOP;
END $$;
GRANT SELECT ON collection_views TO {server};
GRANT UPDATE (terms_total, contents_total) ON collection_views TO {server};
GRANT SELECT, INSERT, UPDATE, DELETE ON record_contents TO {server};

-- Ids of contents begin at cell << 44, and 4,096 cells stay under 2^56: several databases may be one some day. The cell
-- is read here, from the setting likewise.cell of the database (ALTER DATABASE ... SET likewise.cell = 3), else it is 0.
CREATE TABLE cell (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number int NOT NULL CHECK (number BETWEEN 0 AND 4095)
);
INSERT INTO cell (number) VALUES (coalesce(nullif(current_setting('likewise.cell', true), '')::int, 0));
GRANT SELECT ON cell TO {server};
DO $$
DECLARE
    first bigint := (SELECT number::bigint << 44 FROM cell);
BEGIN
    IF first > 0 AND EXISTS (SELECT FROM contents) THEN
        RAISE EXCEPTION 'the contents of this database are in cell 0 already';
    END IF;
    EXECUTE format('ALTER SEQUENCE contents_pk_seq MAXVALUE %s', first + (1::bigint << 44) - 1);
    IF first > 0 THEN
        EXECUTE format('ALTER SEQUENCE contents_pk_seq MINVALUE %s START %s RESTART', first, first);
    END IF;
END $$;

CREATE FUNCTION make_terms(of_table text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = likewise, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I (content bigint PRIMARY KEY, terms int[] NOT NULL, weights {vectors}.sparsevec NOT NULL)', of_table);
    EXECUTE format('ALTER TABLE %I ALTER COLUMN weights SET STORAGE EXTERNAL', of_table);
    EXECUTE format(
        'CREATE INDEX %I ON %I USING gin (terms) WITH (fastupdate = on, gin_pending_list_limit = 256)',
        of_table || '_terms', of_table);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON %I TO {server}', of_table);
END $$;

-- Of one view: its contents wait for their vectors, unless these are made (an empty `of_model`) in the space given.
DROP FUNCTION make_generation(int, text, int, text);
CREATE FUNCTION make_generation(
    of_collection int, of_view smallint, of_model text, of_dimension int, in_state text, of_space text)
RETURNS int
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
    INSERT INTO generations (tenant, collection, view, model, dimension, state, space, numerics)
        VALUES (owner_tenant, of_collection, of_view, of_model, of_dimension, in_state, of_space,
                CASE WHEN of_model = '' THEN 'made' END)
        RETURNING id INTO made;
    EXECUTE format(
        'CREATE TABLE vec_%s (content bigint PRIMARY KEY, embedding {vectors}.halfvec(%s) NOT NULL, tokens int NOT NULL, '
        'truncated int NOT NULL, chars_read int NOT NULL, embedded_at timestamptz NOT NULL DEFAULT now())',
        made, of_dimension);
    EXECUTE format('ALTER TABLE vec_%s ALTER COLUMN embedding SET STORAGE PLAIN', made);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON vec_%s TO {server}', made);
    IF of_model <> '' THEN
        INSERT INTO waiting (tenant, generation, content, lane)
            SELECT owner_tenant, made, pk, 1 FROM contents
            WHERE collection = of_collection AND view = of_view AND state = 'live' ORDER BY pk;
    END IF;
    RETURN made;
END $$;

-- `of_views` has the views beside the first, in their order: name, terms, and, where they have vectors, model (empty
-- for made ones), dimension and space. None has words where the policy keeps none.
DROP FUNCTION make_collection(text, text, text, jsonb, text, int, int);
CREATE FUNCTION make_collection(
    of_name text, of_kind text, of_analyzer text, of_policy jsonb, of_model text, of_dimension int, most int,
    of_views jsonb)
RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    made int;
    keeps_terms boolean := (of_policy ->> 'keep_terms')::boolean IS NOT FALSE;
    one record;
BEGIN
    PERFORM pg_advisory_xact_lock(7720, this_tenant());
    IF (SELECT count(*) FROM collections WHERE tenant = this_tenant()) >= most THEN
        RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = 'too many collections';
    END IF;
    INSERT INTO collections (tenant, name, kind, analyzer, policy)
        VALUES (this_tenant(), of_name, of_kind, of_analyzer, of_policy) RETURNING id INTO made;
    IF keeps_terms THEN
        PERFORM make_terms('terms_' || made);
    END IF;
    UPDATE collections SET active_generation = make_generation(made, 0::smallint, of_model, of_dimension, 'active', NULL)
        WHERE id = made;
    FOR one IN
        SELECT place::smallint AS number, v ->> 'name' AS name, keeps_terms AND (v ->> 'terms')::boolean AS terms,
               v ->> 'model' AS model, (v ->> 'dimension')::int AS dimension, v ->> 'space' AS space
        FROM jsonb_array_elements(of_views) WITH ORDINALITY AS v (v, place) ORDER BY place
    LOOP
        INSERT INTO collection_views (tenant, collection, view, name, terms)
            VALUES (this_tenant(), made, one.number, one.name, one.terms);
        IF one.terms THEN
            PERFORM make_terms(format('terms_%s_%s', made, one.number));
        END IF;
        IF one.model IS NOT NULL THEN
            PERFORM make_generation(made, one.number, one.model, one.dimension, 'active', one.space);
        END IF;
    END LOOP;
    RETURN made;
END $$;

CREATE OR REPLACE FUNCTION drop_collection(wanted int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
DECLARE
    of_generation int;
    of_view smallint;
BEGIN
    PERFORM lock_collection(wanted);
    PERFORM 1 FROM collections WHERE id = wanted AND tenant = this_tenant() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM contents WHERE collection = wanted ORDER BY pk FOR UPDATE;
    EXECUTE format('DROP TABLE IF EXISTS terms_%s', wanted);
    FOR of_view IN SELECT view FROM collection_views WHERE collection = wanted AND terms ORDER BY view LOOP
        EXECUTE format('DROP TABLE terms_%s_%s', wanted, of_view);
    END LOOP;
    FOR of_generation IN SELECT id FROM generations WHERE collection = wanted ORDER BY id LOOP
        DELETE FROM waiting WHERE generation = of_generation;
        EXECUTE format('DROP TABLE vec_%s', of_generation);
    END LOOP;
    DELETE FROM record_fields WHERE collection = wanted;
    IF EXISTS (SELECT FROM collection_views WHERE collection = wanted) THEN
        DELETE FROM record_contents WHERE record IN (SELECT pk FROM records WHERE collection = wanted);
    END IF;
    DELETE FROM records WHERE collection = wanted;
    PERFORM fail_in_jobs(ARRAY(
        SELECT j.content FROM job_contents j JOIN contents c ON c.pk = j.content
        WHERE c.collection = wanted AND j.error IS NULL), 'deleted', true);
    DELETE FROM contents WHERE collection = wanted;
    DELETE FROM collections WHERE id = wanted;
    RETURN true;
END $$;

REVOKE EXECUTE ON FUNCTION
    make_terms(text), make_generation(int, smallint, text, int, text, text),
    make_collection(text, text, text, jsonb, text, int, int, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    make_generation(int, smallint, text, int, text, text),
    make_collection(text, text, text, jsonb, text, int, int, jsonb) TO {server};
