-- Labels of runs, as JSON: to be shown, and to find runs by. Rows without labels are not indexed.
alter table runs add column labels text;

create index runs_labels on runs using gin ((labels::jsonb) jsonb_path_ops)
  where labels is not null;
