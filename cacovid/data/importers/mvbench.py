"""MVBench: a file a task, whose videos (files, or folders of frames) lie where their own collection keeps them."""

from pathlib import PurePosixPath

from cacovid.data.importers.options import letter_of_text, stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow
from cacovid.records import VideoQuestion

FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


class MVBench(Importer):
    """The task is the file's name; ``start`` and ``end`` are seconds of the video."""

    kind = "mvbench"
    title = "MVBench"
    schemas = (("video", "question", "candidates", "answer"),)
    foreign = ("question_type", "duration", "duration_group")

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row."""
        task, name = row.file.stem, row.text("video")
        options = stripped(row.texts("candidates"))
        inside = str(PurePosixPath(FOLDERS.get(task, task)) / name)
        return VideoQuestion(
            id=f"{task}-{row.number}",
            video=self.video([inside, name, f"{task}/{name}"]),
            question=row.text("question"),
            options=options,
            answer=letter_of_text(row.text("answer"), options),
            problem_type="multiple choice",
            source="MVBench",
            start=row.seconds("start"),
            end=row.seconds("end"),
            question_type=task,
        )
