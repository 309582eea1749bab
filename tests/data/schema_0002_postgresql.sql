SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA tuner;
CREATE TYPE public.studydirection AS ENUM (
    'NOT_SET',
    'MINIMIZE',
    'MAXIMIZE'
);
CREATE TYPE public.trialintermediatevaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG',
    'NAN'
);
CREATE TYPE public.trialstate AS ENUM (
    'RUNNING',
    'COMPLETE',
    'PRUNED',
    'FAIL',
    'WAITING'
);
CREATE TYPE public.trialvaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG'
);
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.studies (
    study_id integer NOT NULL,
    study_name character varying(512) NOT NULL
);
CREATE SEQUENCE public.studies_study_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.studies_study_id_seq OWNED BY public.studies.study_id;
CREATE TABLE public.study_directions (
    study_direction_id integer NOT NULL,
    direction public.studydirection NOT NULL,
    study_id integer NOT NULL,
    objective integer NOT NULL
);
CREATE SEQUENCE public.study_directions_study_direction_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_directions_study_direction_id_seq OWNED BY public.study_directions.study_direction_id;
CREATE TABLE public.study_system_attributes (
    study_system_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.study_system_attributes_study_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_system_attributes_study_system_attribute_id_seq OWNED BY public.study_system_attributes.study_system_attribute_id;
CREATE TABLE public.study_user_attributes (
    study_user_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.study_user_attributes_study_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_user_attributes_study_user_attribute_id_seq OWNED BY public.study_user_attributes.study_user_attribute_id;
CREATE TABLE public.trial_heartbeats (
    trial_heartbeat_id integer NOT NULL,
    trial_id integer NOT NULL,
    heartbeat timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq OWNED BY public.trial_heartbeats.trial_heartbeat_id;
CREATE TABLE public.trial_intermediate_values (
    trial_intermediate_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    step integer NOT NULL,
    intermediate_value double precision,
    intermediate_value_type public.trialintermediatevaluetype NOT NULL
);
CREATE SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq OWNED BY public.trial_intermediate_values.trial_intermediate_value_id;
CREATE TABLE public.trial_params (
    param_id integer NOT NULL,
    trial_id integer,
    param_name character varying(512),
    param_value double precision,
    distribution_json text
);
CREATE SEQUENCE public.trial_params_param_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_params_param_id_seq OWNED BY public.trial_params.param_id;
CREATE TABLE public.trial_system_attributes (
    trial_system_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq OWNED BY public.trial_system_attributes.trial_system_attribute_id;
CREATE TABLE public.trial_user_attributes (
    trial_user_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq OWNED BY public.trial_user_attributes.trial_user_attribute_id;
CREATE TABLE public.trial_values (
    trial_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    objective integer NOT NULL,
    value double precision,
    value_type public.trialvaluetype NOT NULL
);
CREATE SEQUENCE public.trial_values_trial_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_values_trial_value_id_seq OWNED BY public.trial_values.trial_value_id;
CREATE TABLE public.trials (
    trial_id integer NOT NULL,
    number integer,
    study_id integer,
    state public.trialstate NOT NULL,
    datetime_start timestamp without time zone,
    datetime_complete timestamp without time zone
);
CREATE SEQUENCE public.trials_trial_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trials_trial_id_seq OWNED BY public.trials.trial_id;
CREATE TABLE public.version_info (
    version_info_id integer NOT NULL,
    schema_version integer,
    library_version character varying(256),
    CONSTRAINT version_info_version_info_id_check CHECK ((version_info_id = 1))
);
CREATE TABLE tuner.tuner_alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE tuner.tuner_attempts (
    id integer NOT NULL,
    trial_id integer NOT NULL,
    number integer NOT NULL,
    worker character varying(250) NOT NULL,
    live boolean NOT NULL,
    expires_at double precision NOT NULL,
    first_step integer NOT NULL,
    environment text NOT NULL,
    started_at double precision NOT NULL,
    ended_at double precision,
    ending character varying(16),
    reason text,
    claim character varying(32)
);
CREATE SEQUENCE tuner.tuner_attempts_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE tuner.tuner_attempts_id_seq OWNED BY tuner.tuner_attempts.id;
CREATE TABLE tuner.tuner_checkpoints (
    id integer NOT NULL,
    trial_id integer NOT NULL,
    attempt_id integer NOT NULL,
    step integer NOT NULL,
    path text NOT NULL,
    digest character varying(64) NOT NULL
);
CREATE SEQUENCE tuner.tuner_checkpoints_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE tuner.tuner_checkpoints_id_seq OWNED BY tuner.tuner_checkpoints.id;
CREATE TABLE tuner.tuner_chunks (
    trial_id integer NOT NULL,
    first_step integer NOT NULL,
    next_step integer NOT NULL,
    attempt_id integer NOT NULL,
    data bytea NOT NULL
);
CREATE TABLE tuner.tuner_published_studies (
    study_id integer NOT NULL,
    target character varying(16) NOT NULL,
    external_id character varying(250),
    revision integer NOT NULL,
    publisher character varying(250),
    expires_at double precision NOT NULL
);
CREATE TABLE tuner.tuner_published_trials (
    trial_id integer NOT NULL,
    target character varying(16) NOT NULL,
    external_id character varying(250),
    next_step integer NOT NULL,
    final boolean NOT NULL
);
CREATE TABLE tuner.tuner_reports (
    trial_id integer NOT NULL,
    step integer NOT NULL,
    value double precision NOT NULL,
    pruned boolean NOT NULL,
    reason text NOT NULL
);
CREATE TABLE tuner.tuner_studies (
    id integer NOT NULL,
    name character varying(200) NOT NULL,
    version integer NOT NULL,
    digest character varying(16) NOT NULL,
    spec text NOT NULL,
    state character varying(16) NOT NULL,
    rungs text NOT NULL,
    workload text NOT NULL,
    settled text,
    attrs text NOT NULL,
    "limit" integer NOT NULL,
    reserved integer NOT NULL,
    next_number integer NOT NULL,
    revision integer NOT NULL,
    created_at double precision NOT NULL
);
CREATE SEQUENCE tuner.tuner_studies_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE tuner.tuner_studies_id_seq OWNED BY tuner.tuner_studies.id;
CREATE TABLE tuner.tuner_trials (
    id integer NOT NULL,
    study_id integer NOT NULL,
    number integer NOT NULL,
    imported boolean NOT NULL,
    params text,
    attrs text NOT NULL,
    asked_revision integer,
    state character varying(16) NOT NULL,
    reason text,
    value double precision,
    stopped_step integer,
    steps integer NOT NULL,
    last_time double precision NOT NULL,
    created_at double precision NOT NULL,
    ended_at double precision,
    revision integer NOT NULL
);
CREATE SEQUENCE tuner.tuner_trials_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE tuner.tuner_trials_id_seq OWNED BY tuner.tuner_trials.id;
ALTER TABLE ONLY public.studies ALTER COLUMN study_id SET DEFAULT nextval('public.studies_study_id_seq'::regclass);
ALTER TABLE ONLY public.study_directions ALTER COLUMN study_direction_id SET DEFAULT nextval('public.study_directions_study_direction_id_seq'::regclass);
ALTER TABLE ONLY public.study_system_attributes ALTER COLUMN study_system_attribute_id SET DEFAULT nextval('public.study_system_attributes_study_system_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.study_user_attributes ALTER COLUMN study_user_attribute_id SET DEFAULT nextval('public.study_user_attributes_study_user_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_heartbeats ALTER COLUMN trial_heartbeat_id SET DEFAULT nextval('public.trial_heartbeats_trial_heartbeat_id_seq'::regclass);
ALTER TABLE ONLY public.trial_intermediate_values ALTER COLUMN trial_intermediate_value_id SET DEFAULT nextval('public.trial_intermediate_values_trial_intermediate_value_id_seq'::regclass);
ALTER TABLE ONLY public.trial_params ALTER COLUMN param_id SET DEFAULT nextval('public.trial_params_param_id_seq'::regclass);
ALTER TABLE ONLY public.trial_system_attributes ALTER COLUMN trial_system_attribute_id SET DEFAULT nextval('public.trial_system_attributes_trial_system_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_user_attributes ALTER COLUMN trial_user_attribute_id SET DEFAULT nextval('public.trial_user_attributes_trial_user_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_values ALTER COLUMN trial_value_id SET DEFAULT nextval('public.trial_values_trial_value_id_seq'::regclass);
ALTER TABLE ONLY public.trials ALTER COLUMN trial_id SET DEFAULT nextval('public.trials_trial_id_seq'::regclass);
ALTER TABLE ONLY tuner.tuner_attempts ALTER COLUMN id SET DEFAULT nextval('tuner.tuner_attempts_id_seq'::regclass);
ALTER TABLE ONLY tuner.tuner_checkpoints ALTER COLUMN id SET DEFAULT nextval('tuner.tuner_checkpoints_id_seq'::regclass);
ALTER TABLE ONLY tuner.tuner_studies ALTER COLUMN id SET DEFAULT nextval('tuner.tuner_studies_id_seq'::regclass);
ALTER TABLE ONLY tuner.tuner_trials ALTER COLUMN id SET DEFAULT nextval('tuner.tuner_trials_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('v3.2.0.a');
INSERT INTO public.studies VALUES (1, 'frozen');
INSERT INTO public.study_directions VALUES (1, 'MINIMIZE', 1, 0);
INSERT INTO public.study_user_attributes VALUES (1, 1, 'tuner.study', '"frozen"');
INSERT INTO public.study_user_attributes VALUES (2, 1, 'tuner.metric', '"val_loss"');
INSERT INTO public.trial_params VALUES (1, 1, 'lr', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": [0.0001, 0.1, 0.15, 0.01]}}');
INSERT INTO public.trial_params VALUES (2, 1, 'schedule', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["constant"]}}');
INSERT INTO public.trial_params VALUES (3, 1, 'optimizer', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd"]}}');
INSERT INTO public.trial_params VALUES (4, 2, 'lr', 1, '{"name": "CategoricalDistribution", "attributes": {"choices": [0.0001, 0.1, 0.15, 0.01]}}');
INSERT INTO public.trial_params VALUES (5, 2, 'schedule', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["constant"]}}');
INSERT INTO public.trial_params VALUES (6, 2, 'optimizer', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd"]}}');
INSERT INTO public.trial_params VALUES (7, 3, 'lr', 2, '{"name": "CategoricalDistribution", "attributes": {"choices": [0.0001, 0.1, 0.15, 0.01]}}');
INSERT INTO public.trial_params VALUES (8, 3, 'schedule', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["constant"]}}');
INSERT INTO public.trial_params VALUES (9, 3, 'optimizer', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd"]}}');
INSERT INTO public.trial_params VALUES (10, 4, 'lr', 3, '{"name": "CategoricalDistribution", "attributes": {"choices": [0.0001, 0.1, 0.15, 0.01]}}');
INSERT INTO public.trial_params VALUES (11, 4, 'schedule', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["constant"]}}');
INSERT INTO public.trial_params VALUES (12, 4, 'optimizer', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd"]}}');
INSERT INTO public.trial_user_attributes VALUES (1, 1, 'tuner.outcome', '"completed"');
INSERT INTO public.trial_user_attributes VALUES (2, 1, 'tuner.reason', '"Ran all 50 steps; val_loss 2.316e+05 at the end."');
INSERT INTO public.trial_user_attributes VALUES (3, 2, 'tuner.outcome', '"completed"');
INSERT INTO public.trial_user_attributes VALUES (4, 2, 'tuner.reason', '"Ran all 50 steps; val_loss 86.18 at the end."');
INSERT INTO public.trial_user_attributes VALUES (5, 3, 'tuner.outcome', '"diverged"');
INSERT INTO public.trial_user_attributes VALUES (6, 3, 'tuner.reason', '"The loss exploded: 8.016e+08 at step 15, more than 10 times 1.335e+06, the level of its first steps, and growing (means of the last 4 times 4 steps: 1.335e+06, 5.062e+06, 4.271e+07, 3.603e+08)."');
INSERT INTO public.trial_values VALUES (1, 1, 0, 231550.91982389078, 'FINITE');
INSERT INTO public.trial_values VALUES (2, 2, 0, 86.17695026947146, 'FINITE');
INSERT INTO public.trials VALUES (1, 0, 1, 'COMPLETE', '2026-11-22 06:53:21.928945', '2026-11-22 06:53:22.018752');
INSERT INTO public.trials VALUES (2, 1, 1, 'COMPLETE', '2026-11-22 06:53:22.037306', '2026-11-22 06:53:22.10241');
INSERT INTO public.trials VALUES (3, 2, 1, 'PRUNED', '2026-11-22 06:53:22.117821', '2026-11-22 06:53:22.157782');
INSERT INTO public.trials VALUES (4, 3, 1, 'RUNNING', '2026-11-22 06:53:22.167541', NULL);
INSERT INTO public.version_info VALUES (1, 12, '5.0.0');
INSERT INTO tuner.tuner_alembic_version VALUES ('0002');
INSERT INTO tuner.tuner_attempts VALUES (1, 1, 1, 'frozen/00000000/pid:[1]:21230:491880', false, 1795330431.961306, 0, '{"device": "cpu", "machine": "x86_64", "host": "frozen", "python": "3.11.7", "packages": {"tuner": "0.1.0", "torch": "2.13.0+cpu", "optuna": "5.0.0", "mlflow": "3.17.2", "numpy": "2.4.6", "scikit-learn": "1.9.1", "sqlalchemy": "2.1.9"}, "git_commit": null, "git_dirty": null, "settled": {"trainer": "reference", "slots": 1, "reason": "the study asks for it", "threads": 1}}', 1795330401.938073, 1795330402.011073, 'finished', 'completed', '84d210b4cb734798b387838265faca1a');
INSERT INTO tuner.tuner_attempts VALUES (2, 2, 1, 'frozen/00000000/pid:[1]:21230:491880', false, 1795330432.067146, 0, '{"device": "cpu", "machine": "x86_64", "host": "frozen", "python": "3.11.7", "packages": {"tuner": "0.1.0", "torch": "2.13.0+cpu", "optuna": "5.0.0", "mlflow": "3.17.2", "numpy": "2.4.6", "scikit-learn": "1.9.1", "sqlalchemy": "2.1.9"}, "git_commit": null, "git_dirty": null, "settled": {"trainer": "reference", "slots": 1, "reason": "the study asks for it", "threads": 1}}', 1795330402.03819, 1795330402.099765, 'finished', 'completed', '034273c3424e44949da4feefbc9dbad7');
INSERT INTO tuner.tuner_attempts VALUES (3, 3, 1, 'frozen/00000000/pid:[1]:21230:491880', false, 1795330432.136301, 0, '{"device": "cpu", "machine": "x86_64", "host": "frozen", "python": "3.11.7", "packages": {"tuner": "0.1.0", "torch": "2.13.0+cpu", "optuna": "5.0.0", "mlflow": "3.17.2", "numpy": "2.4.6", "scikit-learn": "1.9.1", "sqlalchemy": "2.1.9"}, "git_commit": null, "git_dirty": null, "settled": {"trainer": "reference", "slots": 1, "reason": "the study asks for it", "threads": 1}}', 1795330402.11867, 1795330402.155548, 'finished', 'diverged', '26f1eecbe3e44ddd94588e8193a01d35');
INSERT INTO tuner.tuner_attempts VALUES (4, 4, 1, 'frozen/00000000/pid:[1]:21230:491880', false, 1795330432.231235, 0, '{"device": "cpu", "machine": "x86_64", "host": "frozen", "python": "3.11.7", "packages": {"tuner": "0.1.0", "torch": "2.13.0+cpu", "optuna": "5.0.0", "mlflow": "3.17.2", "numpy": "2.4.6", "scikit-learn": "1.9.1", "sqlalchemy": "2.1.9"}, "git_commit": null, "git_dirty": null, "settled": {"trainer": "reference", "slots": 1, "reason": "the study asks for it", "threads": 1}}', 1795330402.168423, 1795330402.24422, 'interrupted', 'the worker was told to stop', 'a1462dcc0d3045b5b5be17e68b7241cc');
INSERT INTO tuner.tuner_checkpoints VALUES (1, 4, 4, 20, '1/3/20-1.pt', 'c722a2ba72e7c4dfa922aa61fba089517a0552c65a6fbf3d2f02ae2ccc708e75');
INSERT INTO tuner.tuner_chunks VALUES (1, 0, 50, 1, '\x30020000000000007b226576616c5f73746570223a7b226474797065223a22493634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b302c38385d7d2c226576616c2f6d65616e5f6162736f6c7574655f6572726f72223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b38382c3137365d7d2c226576616c2f76616c5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b3137362c3236345d7d2c226576616c5f74696d65223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b3236342c3335325d7d2c2274696d65223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b3335322c3735325d7d2c22747261696e2f677261645f6e6f726d223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b3735322c313135325d7d2c22747261696e2f6c72223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b313135322c313535325d7d2c22747261696e2f747261696e5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b313535322c313935325d7d7d20202020000000000000000005000000000000000a000000000000000f00000000000000140000000000000019000000000000001e00000000000000230000000000000028000000000000002d0000000000000032000000000000000000000000407f409342fab730027f40e0e175acdac47e40d0c0aaeffc877e40221fa395964b7e40ba0638b4a60f7e40f8bf0d632cd47d40fa4c90bb26997d40d3ebefd8945e7d40909f1dd875247d4002c0c7d7c8ea7c4000000000c07a1041b6f86a346e3a10411db9617b2ff60f416ba0708b71790f413a36cb0a9bfe0e412027c088a4850e4183dfb0b1860e0e4155f09f4e3a990d41de2fc144b8250d41a58f0b95f9b30c41c8a0cc5bf7430c4107297d58a4c0da4179d87d58a4c0da417fea7d58a4c0da41f9f57d58a4c0da41af037e58a4c0da4168977e58a4c0da41dba57e58a4c0da417cb47e58a4c0da414ebf7e58a4c0da41fdc97e58a4c0da41f75f7f58a4c0da41fa307d58a4c0da41eb3b7d58a4c0da4128407d58a4c0da417c457d58a4c0da4133d07d58a4c0da41d2dc7d58a4c0da4177df7d58a4c0da4185e47d58a4c0da41e9e67d58a4c0da41eee87d58a4c0da4104ed7d58a4c0da4113ef7d58a4c0da41f7f07d58a4c0da41cff27d58a4c0da41a7f47d58a4c0da4173fa7d58a4c0da41bcfc7d58a4c0da41a4fe7d58a4c0da4179007e58a4c0da4144027e58a4c0da41e9057e58a4c0da41e3077e58a4c0da41b7097e58a4c0da417a0b7e58a4c0da41590d7e58a4c0da41b79b7e58a4c0da41619e7e58a4c0da4185a07e58a4c0da417fa27e58a4c0da416ca47e58a4c0da4106a87e58a4c0da4132ad7e58a4c0da4169af7e58a4c0da4151b17e58a4c0da411bb37e58a4c0da41b9b67e58a4c0da41b0b87e58a4c0da4174ba7e58a4c0da4131bc7e58a4c0da41ffbd7e58a4c0da414fc17e58a4c0da4152c37e58a4c0da4127c57e58a4c0da41f5c67e58a4c0da41afc87e58a4c0da41f7cb7e58a4c0da41e2cd7e58a4c0da41a8cf7e58a4c0da4173d17e58a4c0da41e15c7f58a4c0da419a0846d6787ea6405c7196149f75a6401a406acec86ca64056ad6202f663a640967b21af265ba64030f748d35a52a64015f67b6d9249a64093d75d7ccd40a6402c8492fe0b38a640546dbef24d2fa640438d86579326a640bb66902bdc1da640d104826d2815a640c0fa011c780ca640a863b735cb03a64060e249b921fba5403da161a57bf2a540df51a7f8d8e9a540fe2cc4b139e1a5402bf261cf9dd8a540a8e72a5005d0a54028dac93270c7a540a21cea75debea5401888371850b6a540637b5e18c5ada540ffda0b753da5a540d410ed2cb99ca540070cb03e3894a540be4003a9ba8ba540f4a7956a4083a5403dbf1682c97aa540968836ee5572a540328aa5ade569a54042ce14bf7861a540c5e235210f59a54052d9bad2a850a540e14656d24548a540a043bb1ee63fa540b96a9db68937a5401edab098302fa5405832aac3da26a54054963e36881ea5402dab23ef3816a540fb970fedec0da5409f05b92ea405a540911ed7b25efda440ac8e21781cf5a440fa82507dddeca44085a91cc1a1e4a4401d313f4269dca4402d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f2d431cebe2361a3f00000000c07a104189635d8cce6d104192fc2d46e7601041ea0a71250a54104157192c2237471041b6f86a346e3a1041fdba3f54af2d104153aec279fa2010413258129d4f141041797053b6ae0710411db9617b2ff60f411655b75615dd0f41b21816ef0ec40f41d3a5f8341cab0f41b8d2e5183d920f416ba0708b71790f413631387db9600f410abfe7de14480f410e9236a1832f0f4118f7e7b405170f413a36cb0a9bfe0e415e89bb9343e60e41e212a040ffcd0e412dd46b02ceb50e4163a41dcaaf9d0e412027c088a4850e411ec3692fac6d0e4102993cafc6550e411a7a66f9f33d0e413adf20ff33260e4183dfb0b1860e0e414b276702ecf60d41fbee9fe263df0d41fdf1c243eec70d41ad6543178bb00d4155f09f4e3a990d412da062dbfb810d4163e220afcf6a0d412b7a7bbbb5530d41d2771ef2ad3c0d41de2fc144b8250d41303226a5d40e0d4133411b0503f80c410649795643e10c41c056248b95ca0c41a58f0b95f9b30c41732829666f9d0c41ae5c82f0f6860c41f365272690700c415a7333f93a5a0c41');
INSERT INTO tuner.tuner_chunks VALUES (2, 0, 50, 2, '\x30020000000000007b226576616c5f73746570223a7b226474797065223a22493634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b302c38385d7d2c226576616c2f6d65616e5f6162736f6c7574655f6572726f72223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b38382c3137365d7d2c226576616c2f76616c5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b3137362c3236345d7d2c226576616c5f74696d65223a7b226474797065223a22463634222c227368617065223a5b31315d2c22646174615f6f666673657473223a5b3236342c3335325d7d2c2274696d65223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b3335322c3735325d7d2c22747261696e2f677261645f6e6f726d223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b3735322c313135325d7d2c22747261696e2f6c72223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b313135322c313535325d7d2c22747261696e2f747261696e5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b35305d2c22646174615f6f666673657473223a5b313535322c313935325d7d7d20202020000000000000000005000000000000000a000000000000000f00000000000000140000000000000019000000000000001e00000000000000230000000000000028000000000000002d0000000000000032000000000000000000000000407f40733d0ad7a3833a40adda2d7714592b40f3b1cb53d89829406d7dc5c9a6f92740ed1cb12792742640867153eb2908254006d20536dbb22340f398b6462f732240c0346a00c7472140208f5b89592f204000000000c07a1041288c663d118e89409d0850dda6d96e40c2a1a58116f26a408946cabd31a367403cfc60fd53bc6440451b72aca8306240ad56a757fbe95f405b672a7e01ff5b406daabba3288f58407e193927538b5540ce6c8458a4c0da417a8b8458a4c0da41b0978458a4c0da4184a28458a4c0da4156ad8458a4c0da4120bb8458a4c0da4104598558a4c0da41556b8558a4c0da4151768558a4c0da41da808558a4c0da41a8168658a4c0da41d2728458a4c0da416d798458a4c0da413d7d8458a4c0da4145838458a4c0da4147888458a4c0da41688e8458a4c0da41af908458a4c0da41a2928458a4c0da4179948458a4c0da4146968458a4c0da41e1998458a4c0da41d89b8458a4c0da41b69d8458a4c0da417d9f8458a4c0da4139a18458a4c0da418aa48458a4c0da4171a68458a4c0da414fa88458a4c0da4124aa8458a4c0da4104ac8458a4c0da4159af8458a4c0da4143b18458a4c0da414db48458a4c0da412eb78458a4c0da413bb98458a4c0da41694c8558a4c0da41ea4f8558a4c0da4126528558a4c0da4121548558a4c0da4104568558a4c0da417f5c8558a4c0da416e5f8558a4c0da419c658558a4c0da41ea678558a4c0da41dc698558a4c0da419b6d8558a4c0da417f6f8558a4c0da4165718558a4c0da412a738558a4c0da4105758558a4c0da4155788558a4c0da41467a8558a4c0da410b7c8558a4c0da41cb7d8558a4c0da418c7f8558a4c0da41d8828558a4c0da41b5848558a4c0da415f0d8658a4c0da4138128658a4c0da41cf148658a4c0da419a0846d6787ea640dbf8187287289840289d92284cf2894005b7d3d8a1de7b40d308e4c3eff16d401df83700e41a6040f6d7abfbf1625140dc9bad2bf3fe42405a58d67551883540a15768c982d32a401b8e79efffaf234011ca0e7260f220406daeeb0a35db1f401f1fa9c4c3f51e40c0bfbf7a3c6a1e40528316bc40fa1d4076f4a1ee45931d4010c93f40d72f1d408f152ff258ce1c40284b12aa4f6e1c4072576365940f1c401c1dc6d018b21b405adae7d8d5551b4000ad5992c6fa1a40488f6abce6a01a40d592ac5132481a4064cf4367a5f01940b2763a233c9a19402a0a8fb9f2441940fe163a6bc5f01840b172c785b09d184040f21a63b04b1840ee364269c1fa17401ead4a0ae0aa1740762419c4085c1740f03d4220380e17407573e3b36ac1164017a97c1f9d7516400a3fca0ecc2a1640fba39f38f4e015408063c25e129815403eafc54d235015405b62e6dc230915404a7ce7ed10c314406912ef6ce77d1440a5b56350a43914401e4cca9844f61340335ca450c5b3134092c74e8c2372134043f6e0695c3113409a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f9a9999999999b93f00000000c07a104100000000b00ff34003000000ac31d640c01e85eb2c69ba4000bc05721dd0a040288c663d118e894080bea24483be7a40eb9c299163687340aa65efd467fd7040cbb0a41a02ff6f409d0850dda6d96e409d799563eef56d4078090f77d6286d40f6bdb7bddf656c408d56e5cd57a96b40c2a1a58116f26a40a6b3c8ceaf3f6a405da2fb7eee916940a3a73ebdade868402f02f8fbcd4368408946cabd31a36740f934a2a4bc066740def2be28536e6640f25b4180dad965400614d094384965403cfc60fd53bc64404e0e4af913336440396dc56b60ad63408af3aad7212b6340bee94c5b41ac6240451b72aca8306240a61e6b1442b8614036b5416cf842614048760119b7d06040331719086a616040ad56a757fbe95f407574d2efbd165f407e274cbcf6485e40ce92509681805d401e7a65463bbd5c405b672a7e01ff5b4073c251d2b2455b401bd0c1b42e915a40538bdc6e55e15940b45bed1b083659406daabba3288f58407d6541b599ec5740258184c13e4e57409f8f92f6fbb3564047919d3ab61d5640');
INSERT INTO tuner.tuner_chunks VALUES (3, 0, 16, 3, '\x20020000000000007b226576616c5f73746570223a7b226474797065223a22493634222c227368617065223a5b345d2c22646174615f6f666673657473223a5b302c33325d7d2c226576616c2f6d65616e5f6162736f6c7574655f6572726f72223a7b226474797065223a22463634222c227368617065223a5b345d2c22646174615f6f666673657473223a5b33322c36345d7d2c226576616c2f76616c5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b345d2c22646174615f6f666673657473223a5b36342c39365d7d2c226576616c5f74696d65223a7b226474797065223a22463634222c227368617065223a5b345d2c22646174615f6f666673657473223a5b39362c3132385d7d2c2274696d65223a7b226474797065223a22463634222c227368617065223a5b31365d2c22646174615f6f666673657473223a5b3132382c3235365d7d2c22747261696e2f677261645f6e6f726d223a7b226474797065223a22463634222c227368617065223a5b31365d2c22646174615f6f666673657473223a5b3235362c3338345d7d2c22747261696e2f6c72223a7b226474797065223a22463634222c227368617065223a5b31365d2c22646174615f6f666673657473223a5b3338342c3531325d7d2c22747261696e2f747261696e5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b31365d2c22646174615f6f666673657473223a5b3531322c3634305d7d7d20000000000000000005000000000000000a000000000000000f000000000000000000000000407f400ad7a310f7ef9d40c6615e38034fbc400da4ac050cdada4000000000c07a104120bc3d8ad5954d4113f79fb1ba958a413f1727cde3e3c7415ed28858a4c0da417af08858a4c0da413e058958a4c0da41ca188958a4c0da41ded68858a4c0da414bdf8858a4c0da41eae48858a4c0da4134e98858a4c0da4136ed8858a4c0da415bf38858a4c0da4169f78858a4c0da4102fb8858a4c0da4194fe8858a4c0da415b028958a4c0da41f1078958a4c0da41de0b8958a4c0da41500f8958a4c0da41a7128958a4c0da4104168958a4c0da41199b8958a4c0da419a0846d6787ea640b126b8a48f5dad40b276f2fc022bb3402a64bfec0106b9404ec5f7b97555c04044b32203d152c540bccea1c461d6cb40ee439dc7ad2bd240567e33f2adb8d7409d85d0f1c4f7de4035c550f8c636e440248d3a299363ea4071ba6467a339f1409b341348b37cf6407407dcbc435bfd4088b413c984290341333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f333333333333c33f00000000c07a1041000000003b121c41000000d6e5e92741b71ef1a5dc5f344117cb81923c5c414120bc3d8ad5954d4108e8393dc835594115f51469707b6541463de682404e724116003c64a6327f4113f79fb1ba958a413a875ce16da79641b946e3cfec4da341282ec1983673b0410b7a7a221709bc413f1727cde3e3c741');
INSERT INTO tuner.tuner_chunks VALUES (4, 0, 20, 4, '\x28020000000000007b226576616c5f73746570223a7b226474797065223a22493634222c227368617065223a5b355d2c22646174615f6f666673657473223a5b302c34305d7d2c226576616c2f6d65616e5f6162736f6c7574655f6572726f72223a7b226474797065223a22463634222c227368617065223a5b355d2c22646174615f6f666673657473223a5b34302c38305d7d2c226576616c2f76616c5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b355d2c22646174615f6f666673657473223a5b38302c3132305d7d2c226576616c5f74696d65223a7b226474797065223a22463634222c227368617065223a5b355d2c22646174615f6f666673657473223a5b3132302c3136305d7d2c2274696d65223a7b226474797065223a22463634222c227368617065223a5b32305d2c22646174615f6f666673657473223a5b3136302c3332305d7d2c22747261696e2f677261645f6e6f726d223a7b226474797065223a22463634222c227368617065223a5b32305d2c22646174615f6f666673657473223a5b3332302c3438305d7d2c22747261696e2f6c72223a7b226474797065223a22463634222c227368617065223a5b32305d2c22646174615f6f666673657473223a5b3438302c3634305d7d2c22747261696e2f747261696e5f6c6f7373223a7b226474797065223a22463634222c227368617065223a5b32305d2c22646174615f6f666673657473223a5b3634302c3830305d7d7d20202020202020000000000000000005000000000000000a000000000000000f0000000000000014000000000000000000000000407f40adbb1ef1bdd56a40ae6bc1d8f1b45640d366654c78ce4240c68db9e4e1d5344000000000c07a1041e7ee5f5cd9f8e840862332cb6051c3407acbc5a82f81a040dd6ee767391b844078d38b58a4c0da418ceb8b58a4c0da4129418c58a4c0da41084e8c58a4c0da4153598c58a4c0da4120d88b58a4c0da4194dd8b58a4c0da4186e18b58a4c0da4145e58b58a4c0da41cde88b58a4c0da418d358c58a4c0da41e4388c58a4c0da415f3b8c58a4c0da41643d8c58a4c0da41543f8c58a4c0da4171448c58a4c0da41bf468c58a4c0da419f488c58a4c0da41954a8c58a4c0da41934c8c58a4c0da4145508c58a4c0da413d528c58a4c0da413d548c58a4c0da412e568c58a4c0da4106588c58a4c0da419a0846d6787ea640d10227616909a3401818c2b9621ca040a98272d9f8449b400185fd6809149740953e3d1004889340946c813290879040c4dce41275fa8b409ff114bab7ad8740b42024962e0a8440ca154efed8f5804039d8452b6bb57c40c44dff164a4c784083f74611ca9074403636d9233f68714039b7daef2e786d40c8f62d1a74f26840aeaa167efc1e654031145e9570e26140df4991625e4b5e407b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f7b14ae47e17a843f00000000c07a104100000000f69d07418bdb685812ed00418244a26e7f44f84062833c781e67f140e7ee5f5cd9f8e8402990511ecdede1403012eb20c4c4d940753da88ad08ad24063f3df6f8cbbca40862332cb6051c340686c30a27d03bc404e8dd2b9a767b4409ec36e24ade8ad40f29ed7e57f19a6407acbc5a82f81a040dacdaf87c0fd9840e7ba10d7b63e9340cd35b83172408e404a6ceebb26588840');
INSERT INTO tuner.tuner_published_studies VALUES (1, 'optuna', '1', 12, 'frozen/00000000/pid:[1]:21230:491880', 0);
INSERT INTO tuner.tuner_published_studies VALUES (1, 'mlflow', 'faa55e6a413c41109562a83f17cb6d74', 12, 'frozen/00000000/pid:[1]:21230:491880', 0);
INSERT INTO tuner.tuner_published_trials VALUES (1, 'optuna', '1', 0, true);
INSERT INTO tuner.tuner_published_trials VALUES (2, 'optuna', '2', 0, true);
INSERT INTO tuner.tuner_published_trials VALUES (3, 'optuna', '3', 0, true);
INSERT INTO tuner.tuner_published_trials VALUES (4, 'optuna', '4', 0, false);
INSERT INTO tuner.tuner_published_trials VALUES (4, 'mlflow', 'ecff7c01524849e5ba12d414bafdab2a', 20, false);
INSERT INTO tuner.tuner_published_trials VALUES (1, 'mlflow', '741275765fac4ad6b201dfa637e56ca0', 50, true);
INSERT INTO tuner.tuner_published_trials VALUES (2, 'mlflow', '4aec654e24ca45c18d06703fb3d1625b', 50, true);
INSERT INTO tuner.tuner_published_trials VALUES (3, 'mlflow', 'c793b0154a33479787c626cd0d25cc1c', 16, true);
INSERT INTO tuner.tuner_studies VALUES (1, 'frozen', 1, '9eaeae4cb1215c5f', '{"study":{"name":"frozen","description":"","seed":0,"metric":"val_loss","direction":"minimize","value":"last"},"workload":{"factory":"studies.house_prices:line","train":null,"arguments":{}},"training":{"steps":50,"batch_size":"full","evaluate_every":5,"dtype":"float64","device":"cpu","checkpoint_seconds":10.0,"clip_norm":null,"accumulate":1,"precision":null,"patience":null,"seconds":null,"trainer":"reference","slots":"auto"},"space":{"lr":[0.0001,0.1,0.15,0.01],"schedule":[{"name":"constant","warmup":0.0}],"optimizer":[{"name":"sgd","momentum":0.0,"nesterov":false,"weight_decay":0.0}]},"search":{"sampler":{"name":"grid"},"pruner":{"name":"none"}},"guard":{"window":16,"far":10.0,"growth":1.05,"runaway":1000000.0,"late":0.5,"late_margin":1.5,"skipped_steps":20},"budget":{"trials":4,"stop_after_failures":3,"wall_seconds":null,"compute_seconds":null,"no_improvement":null,"regret_below":null,"weight":1.0,"retries":{"stale":3,"failed":0,"out_of_memory":6}}}', 'open', '[]', '{"code": "cd997cf8b43b48a9", "data": "008ead3eb7f8dd34", "data_name": "five houses", "baseline_loss": 20000.0, "training_rows": 5, "validation_rows": 5}', '{"trainer": "reference", "slots": 1, "reason": "the study asks for it", "threads": 1}', '{}', 4, 4, 4, 12, 1795330401.838142);
INSERT INTO tuner.tuner_trials VALUES (1, 1, 0, false, '{"lr": 0.0001, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0, "sgd.momentum": 0.0, "sgd.nesterov": false, "sgd.weight_decay": 0.0}', '{}', 2, 'completed', 'Ran all 50 steps; val_loss 2.316e+05 at the end.', 231550.91982389078, NULL, 50, 1795330401.9902322, 1795330401.928945, 1795330402.018752, 4);
INSERT INTO tuner.tuner_trials VALUES (2, 1, 1, false, '{"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0, "sgd.momentum": 0.0, "sgd.nesterov": false, "sgd.weight_decay": 0.0}', '{}', 5, 'completed', 'Ran all 50 steps; val_loss 86.18 at the end.', 86.17695026947146, NULL, 50, 1795330402.0951328, 1795330402.037306, 1795330402.10241, 7);
INSERT INTO tuner.tuner_trials VALUES (3, 1, 2, false, '{"lr": 0.15, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0, "sgd.momentum": 0.0, "sgd.nesterov": false, "sgd.weight_decay": 0.0}', '{}', 8, 'diverged', 'The loss exploded: 8.016e+08 at step 15, more than 10 times 1.335e+06, the level of its first steps, and growing (means of the last 4 times 4 steps: 1.335e+06, 5.062e+06, 4.271e+07, 3.603e+08).', NULL, 15, 16, 1795330402.1500914, 1795330402.117821, 1795330402.157782, 10);
INSERT INTO tuner.tuner_trials VALUES (4, 1, 3, false, '{"lr": 0.01, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0, "sgd.momentum": 0.0, "sgd.nesterov": false, "sgd.weight_decay": 0.0}', '{}', 11, 'running', NULL, NULL, NULL, 20, 1795330402.192952, 1795330402.167541, NULL, 12);
SELECT pg_catalog.setval('public.studies_study_id_seq', 1, true);
SELECT pg_catalog.setval('public.study_directions_study_direction_id_seq', 1, true);
SELECT pg_catalog.setval('public.study_system_attributes_study_system_attribute_id_seq', 1, false);
SELECT pg_catalog.setval('public.study_user_attributes_study_user_attribute_id_seq', 2, true);
SELECT pg_catalog.setval('public.trial_heartbeats_trial_heartbeat_id_seq', 1, false);
SELECT pg_catalog.setval('public.trial_intermediate_values_trial_intermediate_value_id_seq', 1, false);
SELECT pg_catalog.setval('public.trial_params_param_id_seq', 12, true);
SELECT pg_catalog.setval('public.trial_system_attributes_trial_system_attribute_id_seq', 1, false);
SELECT pg_catalog.setval('public.trial_user_attributes_trial_user_attribute_id_seq', 6, true);
SELECT pg_catalog.setval('public.trial_values_trial_value_id_seq', 2, true);
SELECT pg_catalog.setval('public.trials_trial_id_seq', 4, true);
SELECT pg_catalog.setval('tuner.tuner_attempts_id_seq', 4, true);
SELECT pg_catalog.setval('tuner.tuner_checkpoints_id_seq', 1, true);
SELECT pg_catalog.setval('tuner.tuner_studies_id_seq', 1, true);
SELECT pg_catalog.setval('tuner.tuner_trials_id_seq', 4, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (study_id);
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_pkey PRIMARY KEY (study_direction_id);
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_objective_key UNIQUE (study_id, objective);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_pkey PRIMARY KEY (study_system_attribute_id);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_pkey PRIMARY KEY (study_user_attribute_id);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_pkey PRIMARY KEY (trial_heartbeat_id);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_key UNIQUE (trial_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_pkey PRIMARY KEY (trial_intermediate_value_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_step_key UNIQUE (trial_id, step);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_pkey PRIMARY KEY (param_id);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_param_name_key UNIQUE (trial_id, param_name);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_pkey PRIMARY KEY (trial_system_attribute_id);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_pkey PRIMARY KEY (trial_user_attribute_id);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_pkey PRIMARY KEY (trial_value_id);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_objective_key UNIQUE (trial_id, objective);
ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_pkey PRIMARY KEY (trial_id);
ALTER TABLE ONLY public.version_info
    ADD CONSTRAINT version_info_pkey PRIMARY KEY (version_info_id);
ALTER TABLE ONLY tuner.tuner_alembic_version
    ADD CONSTRAINT tuner_alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY tuner.tuner_attempts
    ADD CONSTRAINT tuner_attempts_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tuner.tuner_attempts
    ADD CONSTRAINT tuner_attempts_trial_id_number_key UNIQUE (trial_id, number);
ALTER TABLE ONLY tuner.tuner_checkpoints
    ADD CONSTRAINT tuner_checkpoints_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tuner.tuner_chunks
    ADD CONSTRAINT tuner_chunks_pkey PRIMARY KEY (trial_id, first_step);
ALTER TABLE ONLY tuner.tuner_published_studies
    ADD CONSTRAINT tuner_published_studies_pkey PRIMARY KEY (study_id, target);
ALTER TABLE ONLY tuner.tuner_published_trials
    ADD CONSTRAINT tuner_published_trials_pkey PRIMARY KEY (trial_id, target);
ALTER TABLE ONLY tuner.tuner_reports
    ADD CONSTRAINT tuner_reports_pkey PRIMARY KEY (trial_id, step);
ALTER TABLE ONLY tuner.tuner_studies
    ADD CONSTRAINT tuner_studies_name_version_key UNIQUE (name, version);
ALTER TABLE ONLY tuner.tuner_studies
    ADD CONSTRAINT tuner_studies_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tuner.tuner_trials
    ADD CONSTRAINT tuner_trials_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tuner.tuner_trials
    ADD CONSTRAINT tuner_trials_study_id_number_key UNIQUE (study_id, number);
CREATE UNIQUE INDEX ix_studies_study_name ON public.studies USING btree (study_name);
CREATE INDEX ix_trials_study_id ON public.trials USING btree (study_id);
CREATE INDEX ix_tuner_checkpoints_trial_id ON tuner.tuner_checkpoints USING btree (trial_id);
CREATE INDEX tuner_attempts_by_claim ON tuner.tuner_attempts USING btree (claim);
CREATE INDEX tuner_attempts_live ON tuner.tuner_attempts USING btree (expires_at) WHERE live;
CREATE UNIQUE INDEX tuner_attempts_one_live ON tuner.tuner_attempts USING btree (trial_id) WHERE live;
CREATE INDEX tuner_trials_by_revision ON tuner.tuner_trials USING btree (study_id, revision);
CREATE INDEX tuner_trials_running ON tuner.tuner_trials USING btree (study_id, number) WHERE ((state)::text = 'running'::text);
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY tuner.tuner_attempts
    ADD CONSTRAINT tuner_attempts_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES tuner.tuner_trials(id);
ALTER TABLE ONLY tuner.tuner_checkpoints
    ADD CONSTRAINT tuner_checkpoints_attempt_id_fkey FOREIGN KEY (attempt_id) REFERENCES tuner.tuner_attempts(id);
ALTER TABLE ONLY tuner.tuner_checkpoints
    ADD CONSTRAINT tuner_checkpoints_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES tuner.tuner_trials(id);
ALTER TABLE ONLY tuner.tuner_chunks
    ADD CONSTRAINT tuner_chunks_attempt_id_fkey FOREIGN KEY (attempt_id) REFERENCES tuner.tuner_attempts(id);
ALTER TABLE ONLY tuner.tuner_chunks
    ADD CONSTRAINT tuner_chunks_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES tuner.tuner_trials(id);
ALTER TABLE ONLY tuner.tuner_published_studies
    ADD CONSTRAINT tuner_published_studies_study_id_fkey FOREIGN KEY (study_id) REFERENCES tuner.tuner_studies(id);
ALTER TABLE ONLY tuner.tuner_published_trials
    ADD CONSTRAINT tuner_published_trials_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES tuner.tuner_trials(id);
ALTER TABLE ONLY tuner.tuner_reports
    ADD CONSTRAINT tuner_reports_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES tuner.tuner_trials(id);
ALTER TABLE ONLY tuner.tuner_trials
    ADD CONSTRAINT tuner_trials_study_id_fkey FOREIGN KEY (study_id) REFERENCES tuner.tuner_studies(id);
