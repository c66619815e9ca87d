-- The text key that texts which are not kept wait encrypted with, by its digest; and keys of collections' terms.

-- One row, from the first process on. The digest tells which key it is, and nothing of the key.
CREATE TABLE text_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id bytea NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON text_key TO {server};

-- Records a key unless there is one; returns the one that is recorded then.
CREATE FUNCTION record_text_key(of_key bytea) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = likewise, pg_temp AS $$
BEGIN
    INSERT INTO text_key (id) VALUES (of_key) ON CONFLICT DO NOTHING;
    RETURN (SELECT id FROM text_key);
END $$;
REVOKE EXECUTE ON FUNCTION record_text_key(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION record_text_key(bytea) TO {server};

-- Where terms are kept and texts are not, words are hashed with this key, which is sealed with the text key: the
-- database alone does not let anybody try words.
ALTER TABLE collections ADD COLUMN terms_key bytea;
GRANT UPDATE (terms_key) ON collections TO {server};

-- What notices of deleted texts are encrypted with: whoever may connect to the database may listen to all of them.
CREATE TABLE notice_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key bytea NOT NULL
);
INSERT INTO notice_key (key) VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));
GRANT SELECT ON notice_key TO {server};
