/**
 * The words of a benchmark run: what is asked, what is measured, what comes out. Types and the list of measures; no behaviour.
 *
 * A **subject** is one way to connect guests (a backend of noid, the kernel's bridge, a peer). A **measure** is one thing tried on
 * each of them; it gives one or several **parts**, each a number with a unit. A **round** tries every measure once on every subject,
 * subjects side by side in time, so that all meet the same machine. A **figure** is one part of one subject over all rounds.
 */

export interface Options {
  readonly quick: boolean
  readonly rounds: number
  /** Of sending, for each throughput. */
  readonly seconds: number
  /** Names, or beginnings of names, of subjects and measures; empty: all. */
  readonly only: readonly string[]
}

export type Need = 'host' | 'vm' | 'publish' | 'dns' | 'process' | 'boot'

export interface Part {
  readonly id: string
  readonly title: string
  readonly unit: string
  readonly better: 'higher' | 'lower'
}

export interface MeasureInfo {
  readonly id: string
  readonly needs: Need
  /** Part of `--quick`. */
  readonly quick: boolean
  readonly parts: readonly Part[]
}

/** One try of one part. `more` is told beside it: CPU seconds per GB, loss in percent. */
export interface Sample {
  readonly value: number
  readonly more: Readonly<Record<string, number>>
}

export interface SubjectInfo {
  readonly name: string
  /** `services`: answers names only. */
  readonly kind: 'noid' | 'kernel' | 'peer' | 'services'
  readonly version: string
  /** As the guest sees it. */
  readonly mtu: number
  /** Transmit queue of the guest's device. */
  readonly txQueueLen: number
  /** Offloads of the guest's device that are on. */
  readonly offloads: readonly string[]
  readonly note: string
  /** What of it can be measured. */
  readonly can: readonly Need[]
}

export interface Figure {
  readonly part: string
  readonly subject: string
  readonly samples: readonly Sample[]
  /** Why a try failed, the last time. */
  readonly failed?: string
}

export interface Report {
  readonly format: 1
  /** ISO 8601. */
  readonly at: string
  readonly took: number
  readonly options: Options
  /** What of the machine matters, in order. */
  readonly facts: readonly (readonly [string, string])[]
  /** 1-minute load before the first round: other work makes figures worth less. */
  readonly load: number
  readonly subjects: readonly SubjectInfo[]
  readonly leftOut: readonly { readonly name: string; readonly why: string }[]
  readonly parts: readonly Part[]
  readonly figures: readonly Figure[]
}

/** What the measuring process says, one JSON object in a line. */
export type Message =
  | { readonly type: 'step'; readonly text: string; readonly done: number; readonly total: number }
  | { readonly type: 'note'; readonly text: string }
  | { readonly type: 'report'; readonly report: Report }
  | { readonly type: 'error'; readonly message: string }
