-- Labels of runs: as JSON beside the run, to be shown; each as name:value, to find runs by.
alter table runs add column labels text;

create table labels (
  label text not null,
  run_id text not null,
  primary key (label, run_id)
) strict, without rowid;
