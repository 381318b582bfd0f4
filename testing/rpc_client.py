"""A gRPC client made at test time from the text of a proto, apart from the server's generated code."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

#: As the interface document's tables name the fields; numbers of the messages that deployed clients have too.
SEED = """
syntax = "proto3";
package cy.llm;
message GenerationParameters {
  uint32 max_new_tokens = 1; optional double temperature = 2; double top_p = 3; double repetition_penalty = 4;
}
message StreamMetadata { string trace_id = 1; string tenant = 2; string player_id = 3; string locale = 4; }
message StreamPredictRequest {
  string model_id = 1; string prompt = 2; string adapter = 3; int32 priority = 4;
  GenerationParameters generation = 5; StreamMetadata metadata = 6; string worker_hint = 7;
}
message StreamPredictResponse { string trace_id = 1; string chunk = 2; bool end_of_stream = 3; int32 index = 4; }
service AIService { rpc StreamPredict(StreamPredictRequest) returns (stream StreamPredictResponse); }
enum TrainingStatus { UNKNOWN = 0; QUEUED = 1; RUNNING = 2; COMPLETED = 3; FAILED = 4; CANCELLED = 5; PAUSED = 6; }
message TrainingHyperParams {
  int32 epochs = 1; int32 batch_size = 2; double learning_rate = 4; int32 max_seq_length = 6; int32 save_steps = 7;
  int32 eval_steps = 9; int32 lora_rank = 10; int32 lora_alpha = 11; double lora_dropout = 12;
}
message LoraConfig {
  int32 r = 1; int32 lora_alpha = 2; double lora_dropout = 3; repeated string target_modules = 4; string bias = 5;
}
message TrainingRequest {
  string base_model = 2; string output_dir = 3; LoraConfig lora_config = 6; TrainingHyperParams hyper_params = 8;
  string dataset_path = 10;
}
message TrainingProgress { string job_id = 1; TrainingStatus status = 2; string trace_id = 16; }
message TrainingStatusRequest { string job_id = 1; }
message TrainingStatusResponse { string job_id = 1; TrainingStatus status = 2; }
message CancelTrainingRequest { string job_id = 1; }
message CancelTrainingResponse { string job_id = 1; bool success = 2; string message = 3; }
message ListTrainingJobsRequest { repeated TrainingStatus status = 1; int32 limit = 2; int32 offset = 3; }
message TrainingJobSummary { string job_id = 1; TrainingStatus status = 2; string base_model = 3; }
message ListTrainingJobsResponse { repeated TrainingJobSummary jobs = 1; int32 total = 2; }
service TrainingService {
  rpc StartTraining(TrainingRequest) returns (stream TrainingProgress);
  rpc GetTrainingStatus(TrainingStatusRequest) returns (TrainingStatusResponse);
  rpc CancelTraining(CancelTrainingRequest) returns (CancelTrainingResponse);
  rpc ListTrainingJobs(ListTrainingJobsRequest) returns (ListTrainingJobsResponse);
}
"""

#: What deployed clients speak, number for number, and the added fields that tests need.
WIRE = """
syntax = "proto3";
package cy.llm;
message StreamMetadata {
  string trace_id = 1; string tenant = 2; string player_id = 3; string locale = 4; map<string, string> extra = 5;
}
message GenerationParameters {
  uint32 max_new_tokens = 1; optional double temperature = 2; double top_p = 3; double repetition_penalty = 4;
  repeated string stop = 5; optional int64 seed = 6; optional uint32 top_k = 7; optional double min_p = 8;
  optional double presence_penalty = 9; optional double frequency_penalty = 10; string response_format = 11;
}
message Message { string role = 1; string content = 2; }
message StreamPredictRequest {
  string model_id = 1; string prompt = 2; string adapter = 3; int32 priority = 4;
  GenerationParameters generation = 5; StreamMetadata metadata = 6; string worker_hint = 7;
  string stream_id = 8; string resume_after = 9; repeated Message messages = 10;
}
message ErrorDetail { string type = 1; string field = 2; string description = 3; }
message Error { string code = 1; string message = 2; repeated ErrorDetail details = 3; }
message StreamPredictResponse {
  string trace_id = 1; string chunk = 2; bool end_of_stream = 3; uint32 index = 4; float ttft_ms = 5;
  float tokens_per_sec = 6; string stream_id = 7; string resume_token = 8; string finish_reason = 9;
  uint32 prompt_tokens = 10; uint32 completion_tokens = 11; Error error = 12;
}
message ControlMessage { string trace_id = 1; string command = 2; map<string, string> payload = 3; }
message WorkerHealthRequest { string trace_id = 1; }
message WorkerHealthResponse { bool healthy = 1; map<string, string> metrics = 2; }
service AiInference {
  rpc StreamPredict(stream StreamPredictRequest) returns (stream StreamPredictResponse);
  rpc Control(ControlMessage) returns (ControlMessage);
  rpc Health(WorkerHealthRequest) returns (WorkerHealthResponse);
}
enum TrainingStatus {
  TRAINING_STATUS_UNKNOWN = 0; TRAINING_STATUS_QUEUED = 1; TRAINING_STATUS_RUNNING = 2;
  TRAINING_STATUS_COMPLETED = 3; TRAINING_STATUS_FAILED = 4; TRAINING_STATUS_CANCELLED = 5;
}
message LoraConfig { int32 r = 1; int32 lora_alpha = 2; double lora_dropout = 3; repeated string target_modules = 4; }
message TrainingHyperparams {
  int32 num_train_epochs = 1; int32 per_device_batch_size = 2; int32 gradient_accumulation_steps = 3;
  double learning_rate = 4; double warmup_ratio = 5; int32 max_seq_length = 6; int32 save_steps = 7;
  int32 logging_steps = 8;
}
message DatasetConfig { string path = 1; string format = 2; double setting_oversample = 3; }
message TrainingRequest {
  string job_id = 1; string base_model = 2; string output_dir = 3; string character_name = 4;
  DatasetConfig dataset = 5; LoraConfig lora = 6; TrainingHyperparams hyperparams = 8; StreamMetadata metadata = 9;
}
message TrainingProgress {
  string job_id = 1; TrainingStatus status = 2; int32 current_epoch = 3; int32 total_epochs = 4;
  int32 current_step = 5; int32 total_steps = 6; double progress_percent = 7; double loss = 8;
  double learning_rate = 9; double gpu_memory_used = 10; double gpu_utilization = 11; double elapsed_seconds = 12;
  double eta_seconds = 13; string message = 14; string error = 15;
}
message TrainingStatusRequest { string job_id = 1; }
message TrainingStatusResponse {
  string job_id = 1; TrainingStatus status = 2; TrainingProgress latest_progress = 3; string output_path = 4;
}
message CancelTrainingRequest { string job_id = 1; }
message CancelTrainingResponse { string job_id = 1; bool success = 2; string message = 3; }
message ListTrainingJobsRequest { repeated TrainingStatus status_filter = 1; int32 limit = 2; }
message TrainingJobSummary {
  string job_id = 1; TrainingStatus status = 2; string base_model = 3; string character_name = 4;
  double progress_percent = 5; string created_at = 6; string updated_at = 7;
}
message ListTrainingJobsResponse { repeated TrainingJobSummary jobs = 1; }
service AiTraining {
  rpc StartTraining(TrainingRequest) returns (stream TrainingProgress);
  rpc GetTrainingStatus(TrainingStatusRequest) returns (TrainingStatusResponse);
  rpc CancelTraining(CancelTrainingRequest) returns (CancelTrainingResponse);
  rpc ListTrainingJobs(ListTrainingJobsRequest) returns (ListTrainingJobsResponse);
}
"""


class RpcClient:
    """Calls the services of one proto over one channel. Requests are dictionaries, answers messages."""

    def __init__(self, folder: Path, proto: str, channel: grpc.Channel, key: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "client.proto").write_text(proto)
        out = folder / "client.bin"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={out}"]
        subprocess.run([*command, "client.proto"], check=True, timeout=30)
        # A pool of its own: both protos name the same messages.
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
            pool.Add(file)
        self._pool = pool
        self._channel = channel
        self.metadata = [("authorization", f"Bearer {key}")] if key else []

    def call(self, service: str, method: str, request: Any, **options: Any) -> Any:
        """Start a call; ``request`` is a dictionary, or for a streaming method an iterable of them."""
        descriptor = self._pool.FindServiceByName(f"cy.llm.{service}").FindMethodByName(method)
        asked = message_factory.GetMessageClass(descriptor.input_type)
        answer = message_factory.GetMessageClass(descriptor.output_type)
        kind = f"{_word(descriptor.client_streaming)}_{_word(descriptor.server_streaming)}"
        start = getattr(self._channel, kind)(
            f"/cy.llm.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        options.setdefault("metadata", self.metadata)
        options.setdefault("timeout", 60)
        if descriptor.client_streaming:
            return start(_messages(asked, request), **options)
        return start(json_format.ParseDict(request, asked()), **options)


def _messages(kind: Any, requests: Iterable[dict[str, Any]]) -> Iterator[Any]:
    for request in requests:
        yield json_format.ParseDict(request, kind())


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"
