# bitnet-env.sh: export the thread counts that suit this machine; see README.md, "In every shell".
# shellcheck shell=sh disable=SC2015,SC2086,SC3013,SC3028,SC3041,SC3044,SC3047
bitnet_env() { # prints commands on fd 9. $1: first argument of the shell, $2: their number
  file=${BASH_SOURCE-} root=${BITNET_ENV_ROOT-} # tests set the root
  [ -z "${ZSH_VERSION-}" ] || emulate -R sh -o posix_argzero
  [ -z "${ZSH_VERSION-}" ] || eval 'file=${functions_source[bitnet_env]}'
  [ -z "${BASH_VERSION-}" ] || { shopt -u failglob nocasematch && trap - DEBUG ERR; }
  set +e +u -f && unset IFS CDPATH
  LC_ALL=C line='' current='' seen='' looked='' group1=/ group2=/ names=cpu
  counts='' binding='' waiting='' mark='' loud=${BITNET_ENV_VERBOSE-} word=${BITNET_ENV-}
  read -r _ _ _ parent _ </proc/self/stat
  [ -n "$file" ] || for file in 10 11 12 13 14 15 16 17 18 19 none; do
    file=/proc/$parent/fd/$file # dash and busybox do not name the file, but keep it open
    [ -f "$file" ] && read -r line <"$file" && [ "${line%%:*}" = '# bitnet-env.sh' ] && break
  done
  case $file in (/*) ;; (*) file=$PWD/$file ;; esac
  bitnet_quotas() { # adds to key the quotas of group $1 and its parents, mounted at $2 or $3
    for top in "$2" "$3"; do
      dir=$top${1%/}
      [ ! -e "$dir/cgroup.procs" ] || seen=$1
      while looked=$looked:$dir; do
        for f in max cfs_quota_us cfs_period_us; do read -r v <"$dir/cpu.$f" && key="$key $v"; done
        [ "$dir" != "$top" ] && dir=${dir%/*} || break
      done
    done
    [ "$seen" = "$1" ] || key="$key $1"
  }
  bitnet_split() { # sets threads, and q (1: under a quota) from $1; fails if it is malformed
    threads=${1% [01]} q=${1##* }
    case $threads in ("$1" | 0* | *[!0-9]* | ????*) return 1 ;; esac
  }
  bitnet_recall() { # reads the saved answer for this key, unless the package has changed
    IFS= read -r script && IFS= read -r home && read -r parts && [ "$script" -ef "$file" ] || return
    while IFS= read -r line && read -r answer && [ "$line" != "$key" ]; do :; done
    for part in $parts; do # its modules: the newest has the time of the saved answers
      [ "$home/$part" -ot "$kept" ] && continue
      [ -e "$home/$part" ] && [ ! "$home/$part" -nt "$kept" ] && current=$key || return
    done
    [ "$line:$current" = "$key:$key" ] && bitnet_split "$answer"
  }
  bitnet_answer() { # uses the answer saved since the boot, else asks Python, which saves it
    read -r key <"$root/sys/devices/system/cpu/online"
    while read -r f v; do case $f in (Cpus_a*) key="$key $v" ;; esac; done <"$root/proc/self/status"
    while IFS=: read -r _ f v; do
      case ,$f, in (,,) group2=$v ;; (*,cpu,*) group1=$v names=$f ;; esac
    done <"$root/proc/self/cgroup"
    bitnet_quotas "$group1" "$root/sys/fs/cgroup/$names" "$root/sys/fs/cgroup/cpu"
    bitnet_quotas "$group2" "$root/sys/fs/cgroup" "$root/sys/fs/cgroup/unified"
    read -r boot <"$root/proc/sys/kernel/random/boot_id"
    kept=${BITNET_TUNING_HOME:-${XDG_CACHE_HOME:-${HOME:-.}/.cache}/bitnet-tuning}/env-$boot
    case $kept in ('~'/*) kept=$HOME/${kept#??} ;; esac; [ -f "$kept" ] && bitnet_recall <"$kept" && return
    [ -d "${file%/*}/bitnet_tuning" ] || file=$(readlink -f "$file")
    command -v python3 && command cd ${ZSH_VERSION:+-q} "${file%/*}/" || return
    bitnet_split "$(BITNET_ENV_ASKS=1 command python3 -m bitnet_tuning env --sh --key "$key" \
      --keep "$kept" --script "$file" --looked "$looked:" --root "${root:-/}" </dev/null)"
  } # ASKS: python3 may be a bash script (pyenv) that sources this file again, through BASH_ENV
  bitnet_counts() { # lists in counts the variables with value $1, appends $2; none if one is $3
    for f in OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS; do
      eval "v=\${$f-}"
      case $v in ("$1") counts="$counts $f$2" ;; ("$3") counts='' && return ;; esac
    done
    case $counts in (' OMP_'*' '*) ;; (*) counts='' ;; esac
  }
  bitnet_groups() { # sets chosen to all groups if there are two or more, else alike to the one
    chosen=$counts$binding$waiting$mark alike=''
    case ${counts:+x}${binding:+x}${waiting:+x}${mark:+x} in (''|x) alike=$chosen chosen='' ;; esac
  }
  bitnet_export() { # exports what the user has not set
    case $asked in ('' | *[!0-9]* | ????*) ;; (*) [ $asked -gt 512 ] || threads=$asked ;; esac
    bitnet_counts '' "=$threads" "$threads"
    [ "${BITNET_ENV_BIND-}${OMP_PROC_BIND-}${OMP_PLACES-}${GOMP_CPU_AFFINITY-}" != 1 ] ||
      [ -n "${KMP_AFFINITY-}${KMP_HW_SUBSET-}" ] || binding=' OMP_PROC_BIND=true OMP_PLACES=cores'
    [ "$q${KMP_BLOCKTIME-}${OMP_WAIT_POLICY-}${KMP_LIBRARY-}" != 0 ] || waiting=' KMP_BLOCKTIME=200'
    [ -n "$binding$waiting" ] || mark=${counts:+" BITNET_ENV_COUNT=$threads"}
    [ -n "$alike" ] || bitnet_groups
    said="exported${chosen:- nothing: your own settings stay}" code=$code${chosen:+"export$chosen;"}
  }
  bitnet_counts "${OMP_NUM_THREADS:-none}" '' ''
  [ "${OMP_PROC_BIND-},${OMP_PLACES-}" != true,cores ] || binding=' OMP_PROC_BIND OMP_PLACES'
  [ "${KMP_BLOCKTIME-}" != 200 ] || waiting=' KMP_BLOCKTIME'
  [ "${BITNET_ENV_COUNT-}" != "${OMP_NUM_THREADS:-none}" ] || mark=${counts:+' BITNET_ENV_COUNT'}
  bitnet_groups
  code=${chosen:+"unset$chosen;"} said='exported nothing: found no working Python 3.10 or later'
  [ -n "$word" ] || [ "$2" != 1 ] || word=$1
  set -- ${BITNET_THREADS-}
  [ $# -gt 1 ] && asked='' || asked=${1#"${1%%[!0]*}"}
  [ "$0" -ef "$file" ] && word=run || word=:$word
  case $word in
    (run) code='exit 2;' loud=1 said='this file must be sourced, not run: . ./bitnet-env.sh' ;;
    (:off) code="$code unset BITNET_ENV;" said="unset${chosen:- nothing: nothing was exported}" ;;
    (: | *[!:A-Za-z_-]*)
      unset v $chosen && counts='' binding='' waiting='' mark=''
      if bitnet_answer; then bitnet_export; else code=''; fi ;;
    (*) code='' loud=1 said="unknown argument: ${word#:} (the only one is off); nothing changed" ;;
  esac
  [ "$loud" != 1 ] || code="printf '%s\\n' 'bitnet-env.sh: $said' >&2; $code"
  printf '%s\n' "$code" >&9
}
\eval "$({ [ "${BITNET_ENV_ASKS-}" ] || bitnet_env "${1-}" "$#"; } 9>&1 >/dev/null 2>&1)" || \:
\unset -f bitnet_env
