/**
 * What a backend's process and the daemon say to each other, over Node's IPC channel as JSON. Types only.
 *
 * The contract of a backend (src/plugins/contract.ts) is plain JSON but for AbortSignals, which become a message, and what a
 * context can do, which becomes messages the other way.
 */

import type { ErrorBody } from '../../errors.ts'
import type { BackendDescriptor, BackendEvent } from '../contract.ts'

/** A descriptor without what cannot travel. */
export type PlainDescriptor = Omit<BackendDescriptor, 'load'>

export interface PlainContext {
  readonly runDir: string
  readonly stateDir: string
  readonly privileged: boolean
}

/** `body` is there when its code is one of the catalogue. */
export interface PlainError {
  readonly message: string
  readonly body?: ErrorBody
}

export type ToChild =
  /** Load backend `backend`: its instance answers calls from now on. */
  | { readonly type: 'load'; readonly call: number; readonly backend: string; readonly context: PlainContext }
  | {
      readonly type: 'call'
      readonly call: number
      readonly backend: string
      readonly method: string
      readonly args: readonly unknown[]
      /** The last argument is an AbortSignal. */
      readonly signal: boolean
    }
  | { readonly type: 'abort'; readonly call: number }

export type FromChild =
  /** First of all: what the plug-in's hook returned, unchecked. */
  | { readonly type: 'descriptors'; readonly list: unknown }
  | { readonly type: 'failed'; readonly error: PlainError }
  | { readonly type: 'result'; readonly call: number; readonly value: unknown }
  | { readonly type: 'error'; readonly call: number; readonly error: PlainError }
  | { readonly type: 'log'; readonly level: 'debug' | 'info' | 'warn' | 'error'; readonly message: string }
  | { readonly type: 'event'; readonly backend: string; readonly event: BackendEvent }
